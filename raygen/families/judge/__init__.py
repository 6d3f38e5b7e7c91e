"""The judge that any family can have: it scores samples, and makes none. Real photos teach it what normal and the
defect types look like."""

from typing import NoReturn

from raygen.checkpoint import Checkpoint
from raygen.errors import UserError
from raygen.families.family import Collector, Family, Judge
from raygen.families.judge.config import JudgeConfig
from raygen.families.recipes import SamplingConfig


class FittedJudge(Family):
    """See raygen.families.family.Family."""

    recipe = JudgeConfig
    has_masks = False
    needs_references = False

    def collector(self) -> type[Collector]:
        from raygen.families.judge.collector import JudgeCollector

        return JudgeCollector

    def judge(self, checkpoint: Checkpoint, config: SamplingConfig) -> Judge:
        from raygen.families.judge.judge import LinearJudge

        return LinearJudge(checkpoint, config)

    def generator(self, checkpoint: Checkpoint, config: SamplingConfig) -> NoReturn:
        raise AssertionError("refused before")

    def refuse(self, checkpoint: Checkpoint, config: SamplingConfig) -> NoReturn:
        raise UserError(
            f"{checkpoint.uri} is a judge, which makes no samples; name it as gate.judge, and as checkpoint what "
            "makes them"
        )
