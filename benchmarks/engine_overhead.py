"""What does a step cost beside the model? Scheduler, arrays of the step, sampling parameters, block
tables and delivery, at the size of nano, with a runner that computes nothing.

    python benchmarks/engine_overhead.py [--sequences 1 4 16 32] [--steps 500]
"""

from __future__ import annotations

import argparse
import json
import time

from ossia.engine.config import EngineConfig, EnginePlan, plan
from ossia.engine.engine import Engine
from ossia.engine.model_runner import forward_input, sampling_batch
from ossia.engine.request import Request, TokenOutput
from ossia.engine.scheduler import SchedulerOutput
from ossia.kernels.interface import SampledTokens
from ossia.model.config import ModelConfig

NANO = ModelConfig(
    num_hidden_layers=6,
    hidden_size=192,
    intermediate_size=64,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=64,
    num_local_experts=16,
    num_experts_per_tok=4,
    vocab_size=2048,
    sliding_window=128,
    sliding_layers=(True, False) * 3,
    max_position_embeddings=1024,
)
PROMPT_TOKENS = 400
MOST_STEPS = 500  # the answers must not reach the context


class NoModel:
    """Builds everything that the kernels would get, and draws the token 5."""

    def __init__(self, plan: EnginePlan) -> None:
        self._plan = plan

    def run(self, step: SchedulerOutput) -> SampledTokens:
        forward_input(step, self._plan.block_size)
        rows = len(sampling_batch(step).seed)
        return SampledTokens([5] * rows, [None] * rows, [[]] * rows)


def decode_steps(num_sequences: int, num_steps: int) -> list[float]:
    """Seconds of each step in which `num_sequences` sequences draw one token each."""
    config = EngineConfig(max_num_seqs=max(EngineConfig.max_num_seqs, num_sequences))
    resolved = plan(config, NANO, cache_itemsize=4)
    engine, outputs = Engine(NoModel(resolved), resolved), list[TokenOutput]()
    for number in range(num_sequences):
        prompt = (number,) * PROMPT_TOKENS  # no two alike, or the second would wait for the first
        engine.submit(Request(str(number), prompt), outputs.extend)
    while len(engine.step()) < num_sequences:  # the prompts
        pass
    seconds: list[float] = []
    for _ in range(num_steps):
        start = time.perf_counter()
        drawn = engine.step()
        seconds.append(time.perf_counter() - start)
        assert len(drawn) == num_sequences
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--steps", type=int, default=MOST_STEPS, help=f"at most {MOST_STEPS}")
    options = parser.parse_args()
    if not 1 <= options.steps <= MOST_STEPS:
        parser.error(f"--steps must lie between 1 and {MOST_STEPS}; got {options.steps}")
    for num_sequences in options.sequences:
        micros = sorted(1e6 * s for s in decode_steps(num_sequences, options.steps))
        result = {
            "sequences": num_sequences,
            "steps": len(micros),
            "median_us": round(micros[len(micros) // 2], 1),
            "p95_us": round(micros[len(micros) * 95 // 100], 1),
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
