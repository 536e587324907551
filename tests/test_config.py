"""Every field is checked, stored and read; mistakes are named with their remedy."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpo_jax import config, fields, types

FIELDS = fields.names(config.RunConfig())


def valid() -> config.RunConfig:
    cfg = config.RunConfig()
    cfg.model.path, cfg.data.meta = "model", "meta.json"
    cfg.rows.long = config.RowShapeConfig(4096, 2560, 4608, 16, 8)
    return cfg


def get(cfg, name):
    for part in name.split("."):
        cfg = getattr(cfg, part)
    return cfg


def put(cfg, name, value):
    *groups, last = name.split(".")
    for group in groups:
        cfg = getattr(cfg, group)
    setattr(cfg, last, value)


def test_paths_are_made_absolute(tmp_path, monkeypatch):
    """What a run stores means the same from elsewhere; what is no path stays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    cfg = config.RunConfig()
    cfg.model.path, cfg.reference.path = "models/tiny", "OWNER/NAME"
    cfg.data.meta, cfg.data.cache_dir = "~/data/meta.json", "cache"
    cfg.data.tokenizer, cfg.data.reroot = "gs://bucket/tokenizer", "/old=~/new"
    cfg.compile_cache = "none"
    found = cfg.located()
    assert found.model.path == str(tmp_path / "models/tiny")
    assert found.reference.path == "OWNER/NAME"
    assert found.data.meta == "/home/me/data/meta.json"
    assert found.data.cache_dir == str(tmp_path / "cache")
    assert found.data.tokenizer == "gs://bucket/tokenizer"
    assert found.data.reroot == "/old=/home/me/new"
    assert found.compile_cache == "none" and found.data.eval_meta == ""
    assert cfg.model.path == "models/tiny"  # the given one is not changed
    assert found.located() == found


def test_the_defaults_are_valid():
    valid().validate()


ONE = (0, -1)  # wrong where at least 1 is needed
ZERO = (-1,)
BELOW_ZERO = (-1e-9, math.nan, math.inf)
SHARE = (-0.01, 1.01, math.nan)
CHOICE = ("", "Cache", "nonsense")

# Field -> values that are wrong whatever the other fields are.
WRONG: dict[str, tuple] = {
    "mode": ("dpo", ""),
    "seed": ZERO,
    "model.path": ("",),
    "model.init": CHOICE,
    "model.dtype": ("float16", "bf16"),
    "model.param_dtype": ("float16", "fp32", "bfloat16"),  # the last is refused
    "model.remat": CHOICE,
    "model.attention": CHOICE,
    "model.drop_path": (-0.1, 1.0, math.nan),
    "model.vision_chunk": ZERO,
    "model.logps_chunk": ZERO,
    "model.vocab_chunk": ZERO,
    "model.frozen_dtype": ("float16", "bf16"),
    "model.train_vision_layers": (-1, 2),  # 2: the tower is not frozen
    "model.lora.language_rank": (-1, 8),  # 8: nor is the decoder
    "model.lora.vision_rank": (-1, 8),
    "model.lora.scale": (0.0, -1.0, math.nan, math.inf),
    "model.lora.language_targets": ((), ("q", "q"), ("wqkv",), ("fc1",)),
    "model.lora.vision_targets": ((), ("qkv", "qkv"), ("proj",)),
    "data.meta": ("",),
    "data.reroot": ("/a", "/a=/b=/c"),
    "data.local_cache_gb": (0.0, -1.0, math.nan),
    "data.min_tiles": ONE,
    "data.max_tiles": ONE,
    "data.max_image_pixels": ONE,
    "data.max_text_bytes": ONE,
    "data.max_left_out": SHARE,
    "data.index_workers": ZERO,
    "data.workers": ZERO,
    "data.threads": ONE,
    "data.retry_seconds": BELOW_ZERO,
    "data.prefetch": ONE,
    "data.prefetch_to_device": ZERO,
    "rows.short.prompt_tokens": ONE,
    "rows.short.chosen_tokens": ONE,
    "rows.short.rejected_tokens": ONE,
    "rows.short.tiles": ZERO,
    "rows.short.pairs": ONE,
    "rows.long.prompt_tokens": ONE,
    "rows.long.chosen_tokens": ONE,
    "rows.long.rejected_tokens": ONE,
    "rows.long.tiles": ZERO,
    "rows.long.pairs": ONE,
    "rows.pairs_per_batch": ONE,
    "rows.rows_per_batch": ZERO,
    "rows.row_multiple": ONE,
    "loss.terms": ((), ("dpo?",), ("sft",), ("sigmoid", "sigmoid", "sft")),
    "loss.weights": ((1.0,), (1.0, -1.0, 1.0), (0.0, 0.0, 0.0), (math.nan, 1.0, 1.0)),
    "loss.beta": (0.0, -0.1, math.nan),
    "loss.label_smoothing": (-0.1, 0.5, 1.0),
    "loss.delta": ("none", "cumulativ"),
    "loss.delta_decay": (1.0, -0.1),
    "loss.sft_reduction": ("mean",),
    "reference.mode": CHOICE,
    "reference.moving_alpha": SHARE,
    "reference.moving_every": ONE,
    "optim.learning_rate": BELOW_ZERO,
    "optim.warmup_fraction": SHARE,
    "optim.b1": (-0.1, 1.0, math.nan),
    "optim.b2": (-0.1, 1.0, math.nan),
    "optim.eps": (0.0, -1e-8),
    "optim.weight_decay": BELOW_ZERO,
    "optim.clip_norm": BELOW_ZERO,
    "optim.epochs": ONE,
    "optim.max_steps": ZERO,
    "optim.accumulation": ONE,
    "optim.accumulation_long": ZERO,
    "mesh.data": (0, -2),
    "mesh.fsdp": (0, -2),
    "mesh.tensor": (0, -2),
    "hosts.connect_s": ONE,
    "hosts.heartbeat_s": (4, 0),
    "hosts.shutdown_s": ONE,
    "hosts.stuck_minutes": BELOW_ZERO,
    "checkpoint.every_steps": ONE,
    "checkpoint.keep_last": ONE,
    "checkpoint.keep_every": ZERO,
    "checkpoint.every_minutes": BELOW_ZERO,
    "checkpoint.retry_seconds": BELOW_ZERO,
    "checkpoint.resume_step": ZERO,
    "log.every_steps": ONE,
    "log.eval_every": ZERO,
    "log.line_seconds": BELOW_ZERO,
    "log.upload_seconds": (0.9, -1.0, math.nan, math.inf),
    "log.profile_start": ONE,
    "log.profile_steps": ZERO,
    "eval.benchmarks": ((), ("pope", "pope")),
    "eval.modes": ((), ("cot", "cot"), ("both",)),
    "eval.protocol": CHOICE,
    "eval.limit": ZERO,
    "eval.n": ONE,
    "eval.temperature": (-0.1, math.nan),
    "eval.top_p": (0.0, 1.1, math.nan),
    "eval.seed": ZERO,
    "eval.max_tiles": ZERO,
    "eval.max_new_tokens": ZERO,
    "eval.every": (-1, 100),  # 100: eval.data is empty
}
# Any text will do here; whether it names something is seen when it is opened.
FREE_TEXT = {
    *("name", "topology", "data.eval_meta", "data.cache_dir", "data.tokenizer"),
    *("data.template", "reference.path", "reference.cache", "compile_cache"),
    *("eval.data", "log.wandb", "data.local_cache"),
}


def test_every_field_has_a_domain():
    switches = {n for n in FIELDS if isinstance(get(config.RunConfig(), n), bool)}
    assert set(FIELDS) == set(WRONG) | FREE_TEXT | switches
    assert not set(WRONG) & (FREE_TEXT | switches)


# What these take depends on other fields.
RELATED = {"data.reroot", "loss.weights"}


@pytest.mark.parametrize("name", sorted(set(WRONG) - RELATED))
def test_bounds_stand_beside_their_field(name):
    """Some wrong value is refused without a look at other fields."""

    def refused(value) -> bool:
        cfg = valid()
        put(cfg, name, value)
        try:
            fields.check(cfg)
        except ValueError as error:
            return name in str(error)
        return False

    fields.check(valid())
    assert any(map(refused, WRONG[name]))


FROZEN = {f"model.freeze_{part}": True for part in ("vision", "language")}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_named_with_a_remedy(name):
    for value in WRONG[name]:
        cfg = valid()
        put(cfg, name, value)
        with pytest.raises(ValueError) as raised:
            cfg.validate()
        message = str(raised.value)
        last = name.rsplit(".", 1)[1] if "." in name else name
        assert last in message, message
        if value not in ("", ()):
            items = value if isinstance(value, tuple) else (value,)
            named = any(repr(item) in message for item in items)
            # Weights that are wrong as a whole are named by what they belong to.
            assert named or name == "loss.weights", message
        assert re.search(
            r"must|use one|name |write|set|raise|needs|did you mean|keep one|nothing",
            message,
        ), message


@pytest.mark.parametrize("name", FIELDS)
def test_a_value_of_another_type_is_named(name):
    default = get(config.RunConfig(), name)
    wrong = {str: 3, int: 1.5, float: "1e-3", bool: 1, tuple: "sft"}[type(default)]
    cfg = valid()
    put(cfg, name, wrong)
    with pytest.raises(ValueError, match=re.escape(f"{name}={wrong!r}: expected ")):
        cfg.validate()


def test_types_within_tuples_and_groups():
    cfg = valid()
    cfg.loss.weights = (1, 2, "3")  # type: ignore[assignment]
    with pytest.raises(ValueError, match="loss.weights=.*a tuple of float"):
        cfg.validate()
    cfg = valid()
    cfg.loss.weights = (1, 0, 2)  # whole numbers are floats too
    cfg.validate()
    cfg.seed = True
    with pytest.raises(ValueError, match="seed=True: expected int"):
        cfg.validate()
    cfg = valid()
    cfg.optim = {}  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"optim=\{\}: expected a config.OptimConfig"):
        cfg.validate()


NO_REJECTED = {f"rows.{name}.rejected_tokens": 0 for name in ("short", "long")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.min_tiles": 5, "data.max_tiles": 4}, "max_tiles=4.*min_tiles=5"),
        ({"mode": "sft"}, r"rejected_tokens=\d+: mode=sft.*set it to 0"),
        ({"mode": "sft", **NO_REJECTED}, r"loss.terms.*\('sft',\)"),
        (
            {
                "mode": "sft",
                **NO_REJECTED,
                "loss.terms": ("sft",),
                "loss.weights": (1.0,),
            },
            "reference.mode='cache'.*set it to 'none'",
        ),
        (
            {"reference.mode": "moving", "reference.path": "other"},
            "reference.path.*leave it empty",
        ),
        (
            {"rows.long.prompt_tokens": 0},
            "rows.long.prompt_tokens=0 must be at least 1",
        ),
        ({"rows.short": config.RowShapeConfig()}, "rows.short has no budgets"),
        (
            {
                "reference.mode": "none",
                "reference.path": "other",
                "loss.terms": ("sft",),
                "loss.weights": (1.0,),
            },
            "reference.path='other': reference.mode='none' reads no reference",
        ),
        (
            {"reference.mode": "online", "reference.cache": "made"},
            "reference.cache='made': read with reference.mode='cache' only, not 'onl",
        ),
        (
            {"reference.mode": "none"},
            "reference.mode='none', but loss.terms=.* need reference log-probs; use",
        ),
        ({"optim.accumulation": 3}, "optim.accumulation=3 must divide.*row_multiple=1"),
        (
            {"optim.accumulation": 4, "rows.rows_per_batch": 6, "rows.row_multiple": 4},
            "optim.accumulation=4 must divide rows.rows_per_batch=6",
        ),
        (
            {"optim.accumulation_long": 2, "rows.row_multiple": 3},
            "optim.accumulation_long=2 must divide.*row_multiple=3",
        ),
        (
            {"optim.accumulation_long": 2, "rows.long": config.RowShapeConfig()},
            "accumulation_long=2: rows.long has no budgets; leave it 0",
        ),
        ({"log.eval_every": 10}, "log.eval_every=10.*data.eval_meta is empty"),
        ({"loss.delta": "cumulatve"}, "did you mean 'cumulative'"),
        ({"reference.mode": "online "}, "did you mean 'online'"),
        (
            {"model.lora.language_rank": 8, "model.freeze_vision": True},
            "language_rank=8: the weights under adapters.*freeze_language=True",
        ),
        ({"model.train_head": True}, "train_head=True.*set model.freeze_language=True"),
        (
            {**FROZEN, "model.lora.vision_rank": 4, "model.train_vision_layers": 2},
            "train_vision_layers=2 and model.lora.vision_rank=4.*set one to 0",
        ),
        ({"model.frozen_dtype": "bfloat16"}, "frozen_dtype='bfloat16': nothing is"),
        (
            {
                **FROZEN,
                "model.lora.language_rank": 8,
                "reference.mode": "moving",
            },
            "reference.mode='moving': a mixture of adapters.*use 'cache' or 'online'",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_values_that_do_not_fit_together(changes, message):
    cfg = valid()
    for name, value in changes.items():
        put(cfg, name, value)
    with pytest.raises(ValueError, match=message):
        cfg.validate()


def test_row_shapes_of_the_config_are_those_of_the_batch():
    shape = config.RowShapeConfig(5, 4, 3, 2, 1).build()
    assert shape == types.RowShape(5, 4, 3, 2, 1)
    assert not config.RowShapeConfig().used
    assert config.RowShapeConfig(tiles=1).used


def _other(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return value[:1]
    return value + ("x" if isinstance(value, str) else 1)


def test_json_round_trip_keeps_every_field():
    cfg = config.RunConfig()
    for name in FIELDS:
        put(cfg, name, _other(get(cfg, name)))
    again = config.from_json(cfg.to_json())
    assert again == cfg
    assert again.to_json() == cfg.to_json()
    default = config.RunConfig()
    assert all(get(again, name) != get(default, name) for name in FIELDS)
    assert isinstance(again.loss.terms, tuple)


@given(
    st.floats(allow_nan=False), st.text(), st.tuples(st.text(), st.text(), st.text())
)
def test_json_round_trip_of_wild_values(number, text, terms):
    cfg = config.RunConfig(name=text)
    cfg.optim.learning_rate, cfg.loss.terms = number, terms
    assert config.from_json(cfg.to_json()) == cfg


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"optim": {"learningrate": 1}}', "did you mean optim.learning_rate"),
        ('{"optimizer": {}}', "no field 'optimizer'; did you mean optim"),
        ('{"model": 3}', "model=3: expected an object"),
        ('{"rows": {"short": [1]}}', r"rows.short=\[1\]: expected an object"),
        ("[]", r"config=\[\]: expected an object"),
        ("{", "Expecting property name"),
    ],
)
def test_json_that_is_no_config(text, message):
    with pytest.raises(ValueError, match=message):
        config.from_json(text)


def test_json_of_another_type_is_found_by_validate():
    raw = json.loads(valid().to_json())
    raw["loss"]["terms"] = "sft"
    cfg = config.from_json(json.dumps(raw))
    with pytest.raises(ValueError, match="loss.terms='sft': expected a tuple of str"):
        cfg.validate()


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("--config.optim.learning_rat=1", "did you mean optim.learning_rate"),
        ("--config.learning_rate=1", "optim.learning_rate"),
        ("--config.los.beta=1", "loss.beta"),
        ("--config.rows.pairs_per_bach=1", "rows.pairs_per_batch"),
        ("--config.model.freeze_vison", "model.freeze_vision"),
    ],
)
def test_a_misspelt_override_is_answered_with_the_nearest_name(argument, hint):
    argv = ["--config=configs/x.py", "--workdir=w", "--config.seed=3", argument]
    with pytest.raises(ValueError, match=f"config has no field .*{hint}"):
        config.check_overrides(argv)
    config.check_overrides(argv[:3])


def test_every_field_can_be_overridden():
    config.check_overrides([f"--config.{name}=1" for name in FIELDS])
    with pytest.raises(ValueError) as raised:
        config.check_overrides(["--config.zzzzzzzz=1"])
    assert "did you mean" not in str(raised.value)


def test_flat_is_what_names_names():
    stored = json.loads(config.RunConfig().to_json())
    flat = fields.flat(stored)
    assert sorted(flat) == sorted(FIELDS)
    assert flat == fields.flat(dataclasses.asdict(config.RunConfig()))


@pytest.mark.slow
def test_train_script_reports_a_misspelt_field_without_a_traceback(root):
    done = subprocess.run(
        [
            *(sys.executable, "scripts/train.py", "--config=configs/trial_cpu.py"),
            *("--workdir=unused", "--config.optim.learning_rat=1e-6"),
        ],
        cwd=root,
        env={"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(
        "train.py: config has no field 'optim.learning_rat'; did you mean "
        "optim.learning_rate"
    )
    assert "Traceback" not in done.stderr


CLASSES = {
    name: {f.name for f in dataclasses.fields(value)}
    for name, value in vars(config).items()
    if isinstance(value, type) and dataclasses.is_dataclass(value)
}
GROUPS = {
    (name, field.name): type(getattr(getattr(config, name)(), field.name)).__name__
    for name in CLASSES
    for field in dataclasses.fields(getattr(config, name))
}


class _Reads(ast.NodeVisitor):
    """Collects ``(class, field)`` of all config fields that a module reads.

    Types are followed from annotations through assignments, attributes, loops over
    tuples and ``dataclasses.replace``: a field ``path`` of some other object does not
    count as ``model.path``.
    """

    def __init__(self, attributes: dict[str, str]):
        self.attributes = attributes
        self.scopes: list[dict[str, str]] = [{}]
        self.found: set[tuple[str, str]] = set()

    def type_of(self, node: ast.expr) -> str | None:
        if isinstance(node, ast.Name):
            known = [scope[node.id] for scope in self.scopes if node.id in scope]
            return known[-1] if known else None
        if isinstance(node, ast.Attribute):
            owner = self.type_of(node.value)
            if owner is None:
                return self.attributes.get(node.attr)
            return GROUPS.get((owner, node.attr))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("replace"):
            return self.type_of(node.args[0]) if node.args else None
        if isinstance(node, ast.Tuple) and node.elts:
            return self.type_of(node.elts[0])  # what a loop over it yields
        return None

    def bind(self, target: ast.expr, value: ast.expr) -> None:
        tuples = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
        if tuples and len(target.elts) == len(value.elts):  # else one is unpacked
            for one, other in zip(target.elts, value.elts, strict=True):
                self.bind(one, other)
        elif isinstance(target, ast.Name):
            kind = self.type_of(value)
            if kind in CLASSES:
                self.scopes[-1][target.id] = kind

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        arguments = [*node.args.args, *node.args.kwonlyargs]
        self.scopes.append(_annotated((a.arg, a.annotation) for a in arguments))
        self.generic_visit(node)
        self.scopes.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self.bind(target, node.value)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        if isinstance(node.target, ast.Name):
            self.bind(node.target, node.iter)
        self.generic_visit(node)

    def visit_GeneratorExp(self, node: ast.GeneratorExp | ast.ListComp) -> None:
        for part in node.generators:
            self.visit(part)
        self.visit(node.elt)

    visit_ListComp = visit_GeneratorExp

    def visit_Attribute(self, node: ast.Attribute) -> None:
        owner = self.type_of(node.value)
        if owner in CLASSES and isinstance(node.ctx, ast.Load):
            self.found.add((owner, node.attr))
        self.generic_visit(node)


def _annotated(items) -> dict[str, str]:
    """Names whose annotation is a config class."""
    names = ((name, annotation) for name, annotation in items if annotation)
    texts = ((name, ast.unparse(a).rsplit(".", 1)[-1]) for name, a in names)
    return {name: text for name, text in texts if text in CLASSES}


def _reads(sources: dict[str, str]) -> set[tuple[str, str]]:
    trees = {name: ast.parse(text) for name, text in sources.items()}
    attributes = {}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                fields = (f for f in node.body if isinstance(f, ast.AnnAssign))
                attributes |= _annotated(
                    (ast.unparse(f.target), f.annotation) for f in fields
                )
    found = set()
    for tree in trees.values():
        reader = _Reads(attributes)
        reader.visit(tree)
        found |= reader.found
    return found


def test_the_reader_of_sources_is_not_fooled():
    found = _reads(
        {
            "a.py": "class Job:\n    cfg: config.RunConfig\n",
            "b.py": (
                "def f(job, cfg: config_lib.OptimConfig, other):\n"
                "    data, _ = job.cfg.data, 1\n"
                "    job.cfg.log.plots = True\n"
                "    return data.meta, cfg.eps, other.path, [s.tiles for s in\n"
                "        (job.cfg.rows.short, 1)], replace(cfg, b1=1).b2\n"
            ),
        }
    )
    assert found == {
        *(("RunConfig", n) for n in ("data", "log", "rows")),
        *(("DataConfig", "meta"), ("RowsConfig", "short")),
        *(("OptimConfig", "eps"), ("OptimConfig", "b2"), ("RowShapeConfig", "tiles")),
    }


def test_every_field_is_read_somewhere(root):
    package = root / "mpo_jax"
    sources = {
        str(path): path.read_text("utf-8")
        for path in sorted(package.rglob("*.py"))
        if not path.name.startswith("config") or path.parent != package
    }
    # Nothing else can hold a config, and parsing takes its time.
    sources = {
        name: text
        for name, text in sources.items()
        if re.search(r"\b\w*(?:cfg|Config|config)", text)
    }
    fields = {(name, field) for name in CLASSES for field in CLASSES[name]}
    # Row shapes become types.RowShape as a whole, in RowShapeConfig.build.
    fields -= {item for item in fields if item[0] == "RowShapeConfig"}
    # What a class inherits is read where its base is.
    fields -= {
        (name, field)
        for name in CLASSES
        for base in getattr(config, name).__mro__[1:-1]
        for field in CLASSES[base.__name__]
    }
    assert fields - _reads(sources) == set()
