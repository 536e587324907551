"""Make a small copy of a released model's directory, to try a recipe on a CPU.

  python scripts/shrink_model.py --src=/models/InternVL2-2B --dst=/tmp/small_2b
  python scripts/train.py --config=configs/trial_cpu.py --workdir=runs/trial \
      --config.model.path=/tmp/small_2b --config.data.meta=/data/my_pairs/meta.json

Tokenizer, vocabulary, template and image size stay those of the source; widths and
depths shrink; there are no weights (the config sets model.init=random). The source
needs only config.json and its tokenizer files.
"""

from __future__ import annotations

from absl import flags

from mpo_jax.demo import shrink
from mpo_jax.utils import cli, progress

_SRC = flags.DEFINE_string(
    "src", None, "Directory of the released model", required=True
)
_DST = flags.DEFINE_string("dst", None, "New directory", required=True)
_WIDTH = flags.DEFINE_integer("width", 64, "Hidden size of both towers")
_LAYERS = flags.DEFINE_integer("layers", 2, "Layers of each tower")


def main(argv: list[str]) -> None:
    del argv
    target = shrink.shrink(
        _SRC.value, _DST.value, width=_WIDTH.value, layers=_LAYERS.value
    )
    progress.console().print(f"Wrote {target}; train with model.init=random.")


if __name__ == "__main__":
    cli.run(main)
