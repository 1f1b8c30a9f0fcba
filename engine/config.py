"""The engine's settings: one frozen object, built once at the edge."""

from dataclasses import dataclass

from atlas_model.rounded_products import supports_bfloat16_products

# Twice as long as an idle engine is silent.
MIN_STEP_TIMEOUT_SECONDS = 2.0
MATMUL_DTYPES = ("float32", "bfloat16")
NATIVE_KERNELS = ("auto", "off", "require")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Raises ValueError, naming the key, when a value makes no sense.

    max_num_sequences: slots on the device, the most sequences that run at once; half of them for documents.
    max_num_waiting: sequences that may wait beyond the free slots; the next one is refused with QueueFull.
    max_num_batched_tokens: the prefill budget of one step (rows x longest piece, padding included).
    max_added_itl_seconds: while other sequences decode, a step that reads documents takes about so long at most, which
        is what it adds to the time between two of their tokens. The core finds how many tokens that is, from 16 on.
    max_num_interleaved_tokens: the most that it may find, and the prefill budget of questions beside those who decode.
    background_share: of the tokens that are prefilled while both interactive sequences and documents want to be.
    is_multi_tenant: no tenant alone may fill the queue (`places`).
    max_num_piece_tokens: the most tokens that one sequence is fed in one prefill step. Nothing to do with the
        memory's chunk, which is part of the model.
    max_num_batchable_tokens: a longer piece is prefilled in a batch of its own, while others wait for their turn. None
        is 128 on the CPU, where long rows are dearer together than one by one, and any piece elsewhere.
    memory_sample_tokens: a sequence's memory is sampled while it is prefilled, at most once every so many tokens; 0 is
        never. A sample of the shipped model costs as much as the prefill of 25 to 50 tokens (`python -m bench cost`),
        so less than 1 % with the default.
    max_state_norm: a tensor of a state whose norm is beyond it (or not finite) is never handed out.
    step_timeout_seconds: a step that takes longer is a hang: the engine is given up. At least two seconds; None is
        `step_timeout_seconds` of the model's parameters.
    num_threads: torch's threads on the CPU; None is as many as the cores that the process may use (`threads`).
    device: where the model and the slots live.
    matmul_dtype: `bfloat16` makes the products of the model's dense layers in it, `float32` in the model's own dtype.
        States are the same in kind: one goes on under either setting.
    native_kernels: `auto` computes decode steps by the native kernels where they cover the model and this machine can
        compile them, `off` never, and `require` raises instead of doing without.
    max_pinned_num_bytes: on CUDA, host memory for states that are copied while the model runs.
    cuda_graphs: on CUDA, decode steps are captured at the start, one for each power of two of rows, and replayed.
    allow_tf32: on CUDA, products of float32 matrices may round their operands (see `numerics`).
    """

    max_num_sequences: int = 32
    max_num_waiting: int = 256
    max_num_batched_tokens: int = 2048
    max_added_itl_seconds: float = 0.01
    max_num_interleaved_tokens: int = 512
    max_num_piece_tokens: int = 1024
    max_num_batchable_tokens: int | None = None
    background_share: float = 0.125
    is_multi_tenant: bool = False
    memory_sample_tokens: int = 8192
    max_state_norm: float = 1e6
    step_timeout_seconds: float | None = None
    num_threads: int | None = None
    device: str = "cpu"
    matmul_dtype: str = "float32"
    native_kernels: str = "auto"
    max_pinned_num_bytes: int = 2**28
    cuda_graphs: bool = True
    allow_tf32: bool = False

    def __post_init__(self) -> None:
        for key in ("max_num_waiting", "memory_sample_tokens", "max_pinned_num_bytes"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must be 0 or more, not {getattr(self, key)}")
        if not 0 < self.background_share < 1:
            raise ValueError(f"background_share must be between 0 and 1, not {self.background_share}")
        if self.matmul_dtype not in MATMUL_DTYPES:
            raise ValueError(f"matmul_dtype must be one of {', '.join(MATMUL_DTYPES)}, not {self.matmul_dtype!r}")
        if self.matmul_dtype == "bfloat16" and not supports_bfloat16_products(self.device):
            raise ValueError(
                f"matmul_dtype bfloat16: {self.device} has no instructions for it here (avx512_bf16, amx_bf16)"
            )
        if self.native_kernels not in NATIVE_KERNELS:
            raise ValueError(f"native_kernels must be one of {', '.join(NATIVE_KERNELS)}, not {self.native_kernels!r}")
        if self.step_timeout_seconds is not None and not self.step_timeout_seconds >= MIN_STEP_TIMEOUT_SECONDS:
            raise ValueError(
                f"step_timeout_seconds must be at least {MIN_STEP_TIMEOUT_SECONDS:g}, not {self.step_timeout_seconds}"
            )
        positive = {
            "max_num_sequences": self.max_num_sequences,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "max_added_itl_seconds": self.max_added_itl_seconds,
            "max_num_interleaved_tokens": self.max_num_interleaved_tokens,
            "max_num_piece_tokens": self.max_num_piece_tokens,
            "max_num_batchable_tokens": 1 if self.max_num_batchable_tokens is None else self.max_num_batchable_tokens,
            "max_state_norm": self.max_state_norm,
            "num_threads": 1 if self.num_threads is None else self.num_threads,
        }
        for key, value in positive.items():
            if not value > 0:
                raise ValueError(f"{key} must be above 0, not {value}")
