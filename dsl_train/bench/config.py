"""What `dsl-bench` can be told."""

from dataclasses import dataclass, field
from typing import Literal

from dsl_train.base.sampling import Sampling

AUTOREGRESSIVE, TRANSFORMERS, ASSISTED = "autoregressive", "transformers", "transformers-assisted"
LIVE_ONLY = (AUTOREGRESSIVE, TRANSFORMERS, ASSISTED)


def is_learned(spec: str) -> bool:
    """Whether a policy needs the predictor."""
    return spec.partition(":")[0] == "learned"


def all_contenders() -> list[str]:
    """Who competes unless told otherwise."""
    static = [f"static:{k}" for k in range(1, 11)]
    return [AUTOREGRESSIVE, *static, "heuristic", "confidence", "learned", TRANSFORMERS, ASSISTED]


@dataclass(frozen=True)
class BenchConfig:
    """Compare stopping rules: live on the clock, replayed over traces, or only measure what a step costs here."""

    mode: Literal["live", "replay", "profile", "verify"] = "live"
    """live: generate and time; replay: walk over --traces with a cost, no model loaded; profile: measure the costs;
    verify: test that greedy texts and the law of sampled ones are the target's own."""
    target: str = ""
    """Target model: folder or Hub id (live, profile, verify)."""
    draft: str = ""
    """Draft model: folder or Hub id (live, profile, verify)."""
    predictor: str | None = None
    """Folder of a trained predictor. Default: the draft's `dsl/`."""
    prompts: str = ""
    """Prompt file or Hub data set (live, verify). Default of verify: a few prompts of its own."""
    column: str | None = None
    """Column of the prompts. Default: recognised."""
    traces: list[str] = field(default_factory=list)
    """Trace folders of held-out prompts (replay, report)."""
    policies: list[str] = field(default_factory=all_contenders)
    """Who competes: NAME[:ARGS] each. `autoregressive`, `transformers` and `transformers-assisted` are not
    replayed. Default of verify: one rule of each kind, a coin, and the predictor if there is one."""
    num_prompts: int = 16
    """Prompts to use, from the first on (live, verify); with --by, of each group."""
    by: str | None = None
    """Column of the prompts to group by, such as `category`: one more table and plot, a row for each of its values
    (live)."""
    tune_prompts: str | None = None
    """Other prompts, on which the static lookahead to compare with is chosen first, once each; --num_prompts of
    them. Default: the best on --prompts themselves (live)."""
    max_new_tokens: int = 128
    """Length of a response, unless it ends by itself (live)."""
    draws: int = 1000
    """Sampled texts of each policy after each prompt (verify)."""
    law_prompts: int = 2
    """Prompts whose sampled texts are tested, from the first on (verify)."""
    repeats: int = 3
    """How often each prompt is timed with each policy (live)."""
    temperature: float = 0.0
    """0 is greedy, and then outputs are compared token by token."""
    top_k: int = 0
    """Keep the most likely tokens only; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with this probability."""
    draft_temperature: float | None = None
    """At which our loop's draft draws, for all policies (live, verify); 0: its most likely token. Default: as the
    predictor was trained, else the temperature."""
    verification: Literal["block", "token"] = "block"
    """How our loop judges sampled blocks: as a whole or token by token (live, verify)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: float32 on the CPU, else bfloat16."""
    device: str = "auto"
    """auto: CUDA if there is one."""
    compile: bool = False
    """Compile the forwards of both models before anything is timed (live, profile, verify)."""
    num_threads: int | None = None
    """Threads of torch on the CPU. Default: torch's choice."""
    seed: int = 0
    """Of sampling and bootstrap."""
    threshold: float | None = None
    """Survival above which `learned` drafts on. Default: from the measured cost."""
    c: list[float] = field(default_factory=lambda: [0.05, 0.1, 0.2, 0.3])
    """Costs of a draft token in target steps to replay at (replay); with --target and --draft the measured one too."""
    report: str | None = None
    """Folder for a report on --traces and the predictor: one HTML page, figures, all numbers; and what was timed."""
    tune_on: list[str] = field(default_factory=list)
    """Trace folders of other prompts, on which every rule is tuned (replay, report). Default: the report tunes on
    --traces, in the rules' favour, and a replay compares with the best static lookahead of --policies."""
    output: str | None = None
    """Folder for result.json, config.json and plots. Default: only print."""

    def __post_init__(self) -> None:
        required = {
            "live": ("target", "draft", "prompts"),
            "replay": ("traces",),
            "profile": ("target", "draft"),
            "verify": ("target", "draft"),
        }
        for name in required[self.mode]:
            if not getattr(self, name):
                instead = "; for traces alone add --mode replay" if self.mode == "live" and self.traces else ""
                raise ValueError(f"--mode {self.mode} needs --{name}{instead}")
        if self.report and not self.traces:
            raise ValueError("--report needs --traces of held-out prompts")
        for name in ("num_prompts", "max_new_tokens", "repeats", "draws", "law_prompts"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, not {getattr(self, name)}")
        if not self.policies or not self.c or min(self.c) <= 0:
            raise ValueError(f"--policies and --c need one positive entry each, not {self.policies} and {self.c}")
        self.sampling  # noqa: B018 - checks the three parameters

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p, self.draft_temperature)
