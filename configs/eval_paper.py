"""The benchmarks of the paper's table, in both modes.

  python scripts/evaluate.py --config=configs/eval_paper.py --model=runs/8b \
      --workdir=runs/8b_eval --data=/data/benchmarks

M3CoT, MathVista and POPE by InternVL's own scripts; the rest by VLMEvalKit's prompts
and rules, as in the paper. MM-Vet, LLaVA-Bench and MMHal are graded by a judge there
(--judge_endpoint); without one their scores are of rules, and say so.

Hardware: what holds the model; 8B in bfloat16 takes one v5e:2x4 or one 80 GB GPU.
docs/evaluation.md says what is to be downloaded (1.5 GB) and how long it takes.
"""

from mpo_jax import config


def get_config() -> config.EvaluationConfig:
    return config.EvaluationConfig(
        benchmarks=(
            "mathvista",
            "mathvision_testmini:vlmevalkit",
            "m3cot",
            "pope",
            "crpe_relation:vlmevalkit",
            "mmvet",
            "llava_bench",
            "mmhal",
        ),
        modes=("direct", "cot"),
        protocol="paper",
    )
