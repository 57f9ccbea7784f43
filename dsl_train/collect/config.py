"""What `dsl-collect` can be told. Field docstrings are its help."""

from dataclasses import dataclass
from typing import Literal

from dsl_train.base.sampling import Sampling


@dataclass(frozen=True)
class CollectConfig:
    """Record what the draft says and what the target accepts, for dsl-train.

    From prompts, which the target answers now:
    dsl-collect --target T --draft D --prompts prompts.jsonl --output runs/traces.
    From responses that it gave elsewhere, without asking it again:
    dsl-collect --target T --draft D --responses log.jsonl --output runs/traces.
    From a target that is served, without loading it; the draft alone labels its answers, or a log of them:
    dsl-collect --server http://host:8000 --draft D --prompts prompts.jsonl --output runs/traces;
    dsl-collect --draft D --responses log.jsonl --output runs/traces.
    For vLLM, which drafts greedily unless told otherwise, add --draft_sampling greedy to texts that are sampled.
    Add --dry_run to see first how long and large it would be. The same command again resumes, after any end.
    Exit code 0: complete; 3: complete, but some rows or texts were put aside, each with its reason in the folder's
    rejects; 1: failed, what is finished stays; 2: wrong usage. docs/collection.md has shards, Slurm, Ray and logs.
    """

    target: str | None = None
    """Folder or Hub id of the target model, or of a PEFT adapter of it; or a GGUF file. Left out with server, and with
    responses that the draft alone shall label."""
    draft: str = ""
    """Folder or Hub id of the draft model, or of a PEFT adapter of it; or a GGUF file. Required; without a target its
    tokenizer, which must be the target's, is used."""
    output: str = ""
    """Trace folder to write; with several shards, the folder of their folders. Required."""
    prompts: str | None = None
    """JSONL, JSON, Parquet, CSV or text file, a Hub dataset or a folder of one, or '-' for standard input."""
    responses: str | None = None
    """Instead of prompts: the same, each prompt with the target's response (text or token ids) and how it was sampled,
    such as a server's log. The target generates nothing then. With prompts, which then are the requests that these
    answer: joined by custom_id, as the two files of an OpenAI batch."""
    server: str | None = None
    """Instead of a target: URL of an OpenAI-compatible server that answers the prompts in token ids, such as vllm
    serve's. Sampled texts whose drafts are drawn (see draft_sampling) need its --logprobs-mode processed_logprobs. A
    key is taken from OPENAI_API_KEY."""
    server_model: str | None = None
    """Which of the server's models, if it has several."""
    server_requests: int = 16
    """Requests that the server is sent at once. Changes the speed, not what is recorded."""
    column: str | None = None
    """Column of the prompts, if it is not named prompt, text, question, turns, messages or conversations; of models
    that read audio, if it is not named audio or input_features."""
    split: str = "train"
    """Split of a Hub dataset."""
    num_prompts: int | None = None
    """Use only the first so many different prompts; of responses, so many different texts. A collection resumed with
    more of them grows."""
    method: Literal["hindsight", "oracle"] = "hindsight"
    """hindsight: the target's responses, generated in batches, through both models once; the same law, faster. oracle:
    speculative decoding itself, each block drafted to the first mismatch and a tail beyond."""
    batch_size: int = 16
    """Texts generated and read together by hindsight. Changes the speed, not what is recorded (in float32)."""
    max_new_tokens: int = 128
    """Response length at most. A response from a log is used whole, as far as the context goes."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy. Like top_k and top_p, of responses whose row does not state it."""
    top_k: int = 0
    """Sample from the k most likely tokens; 0 is off."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with this probability; 1 is off."""
    draft_sampling: Literal["greedy", "probabilistic"] | None = None
    """How the draft chooses its tokens when the target samples. greedy: the most likely one, as vLLM does by default;
    probabilistic: drawn, as our own loop does and vLLM with draft_sample_method probabilistic. The predictor remembers
    which. Default: probabilistic."""
    draft_temperature: float | Literal["auto"] | None = None
    """At which the draft draws its tokens when the target samples: a number, or auto for the one that has most accepted
    on the first texts, for each temperature of theirs. Default: the target's."""
    max_lookahead: int = 8
    """Tokens drafted before a verification, at most. Changes the speed, not what is recorded."""
    tail_length: int = 8
    """Draft steps recorded after a rejected token."""
    tail_fraction: float = 1.0
    """Share of the rejected tokens that get such a tail, chosen at random."""
    verification: Literal["block", "token"] | None = None
    """How the rounds that are recorded judge a sampled block: as a whole or token by token (docs/sampling.md); greedy
    texts know no difference. block takes the target once more over every tail, and one tail for every token. Default:
    block if the target answers now, at a temperature above 0, by hindsight, and drafts are drawn; else token."""
    part_size: int = 16
    """Prompts per part: what a kill can cost."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of both models; auto is float32 on the CPU and bfloat16 elsewhere."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto is CUDA if there is one, of several the one of LOCAL_RANK."""
    device_map: str | None = None
    """Spread the target over several GPUs: auto, balanced, ... as in transformers. Needs accelerate."""
    quantization: Literal["8bit", "4bit"] | None = None
    """Load the target's weights in so many bits. Needs bitsandbytes."""
    num_shards: int | None = None
    """Share the prompts among so many processes, each with a folder of its own in the output. Default: WORLD_SIZE of
    torchrun, else the tasks of srun times those of the array job, else 1."""
    shard_index: int | None = None
    """Which of them this one is, from 0. Default: RANK, else that of the Slurm task."""
    executor: Literal["local", "ray"] = "local"
    """local: in this process. ray: in actors of the Ray cluster at RAY_ADDRESS, else of one started here."""
    num_actors: int = 1
    """Ray actors, each with both models."""
    gpus_per_actor: float = 0
    """GPUs of a Ray actor; 0 collects on the CPU."""
    dry_run: bool = False
    """Write nothing: say what would run, and how long and large it would be by one measured batch."""
    seed: int = 0
    """Randomness of sampling; each prompt has a generator of its own."""
    num_threads: int | None = None
    """CPU threads of torch; its own choice if not given."""

    def __post_init__(self) -> None:
        _ = self.sampling
        self._check_sources()
        if self.prompts is None and self.responses is None:
            raise ValueError("give prompts, or responses, or responses and the prompts that they answer")
        if isinstance(self.draft_temperature, float | int) and self.draft_temperature <= 0:
            raise ValueError(f"draft_temperature must be positive, or auto, not {self.draft_temperature}")
        if self.draft_temperature is not None and self.responses is None and self.sampling.greedy:
            raise ValueError(
                f"draft_temperature is {self.draft_temperature} but temperature 0: a greedy draft draws nothing; leave "
                "it out, or give a temperature"
            )
        if self.draft_temperature is not None and self.draft_sampling == "greedy":
            raise ValueError(
                f"draft_temperature is {self.draft_temperature} but draft_sampling greedy, which draws nothing; leave "
                "one of them out"
            )
        at_least = dict.fromkeys(("batch_size", "max_new_tokens", "max_lookahead", "part_size", "num_actors"), 1)
        at_least |= {"server_requests": 1}
        at_least |= dict.fromkeys(("num_prompts", "num_threads", "num_shards"), 1)
        at_least |= dict.fromkeys(("tail_length", "shard_index", "gpus_per_actor"), 0)
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        if not 0 <= self.tail_fraction <= 1:
            raise ValueError(f"tail_fraction must be between 0 and 1, not {self.tail_fraction}")
        if (self.num_shards or 1) > 1 and self.shard_index is None:
            raise ValueError(f"num_shards is {self.num_shards} but shard_index is not given; say which one this is")
        if self.shard_index is not None and self.shard_index >= (self.num_shards or 0):
            raise ValueError(f"shard_index is {self.shard_index} but num_shards {self.num_shards}; it counts from 0")
        if self.responses is not None and self.method == "oracle":
            raise ValueError("method oracle decodes by itself and cannot use responses; choose hindsight")
        if self.verification == "block" and self.method == "oracle":
            raise ValueError("method oracle verifies token by token; choose hindsight for verification block")
        if self.verification == "block" and not self._knows_blocks:
            raise ValueError(
                "verification block compares the target's distribution with the one that the draft draws from; give "
                "target and leave out draft_sampling greedy, or choose verification token"
            )
        if self.executor == "local" and (self.num_actors > 1 or self.gpus_per_actor):
            raise ValueError("num_actors and gpus_per_actor are for executor ray, which is local")

    def _check_sources(self) -> None:
        if not (self.draft and self.output):
            raise ValueError("give draft, the model's folder or Hub id, and output, the folder to write")
        if self.server is None and self.server_model is not None:
            raise ValueError("server_model names a model of a server; give server, its URL, as well")
        if self.server is not None and (self.target is not None or self.responses is not None or self.prompts is None):
            raise ValueError(
                "a server answers prompts in the target's place; give it prompts, and no target or responses"
            )
        if self.target is not None:
            return
        if self.server is None and self.responses is None:
            raise ValueError("give target, or server where it is served, or responses that it gave")
        if self.method == "oracle":
            raise ValueError("method oracle asks the target itself; give target, or choose hindsight")
        if self.draft_temperature == "auto":
            raise ValueError("draft_temperature auto compares both models' distributions; give target, or a number")
        if self.device_map or self.quantization:
            raise ValueError("device_map and quantization are for the target, and none is given; leave them out")

    @property
    def by_block(self) -> bool:
        """Whether rounds judged by block are recorded."""
        if self.verification is None:
            answers_now = self.method == "hindsight" and self.responses is None
            return answers_now and not self.sampling.greedy and self._knows_blocks
        return self.verification == "block"

    @property
    def _knows_blocks(self) -> bool:
        """Blocks are judged by both distributions of every drafted token."""
        return self.target is not None and self.draft_sampling != "greedy"

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p)

    @property
    def source(self) -> str:
        """Where prompts, or responses, are read from."""
        return str(self.prompts if self.responses is None else self.responses)
