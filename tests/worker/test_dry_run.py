"""The description of a run before it begins, and the one step that is tried."""

from pathlib import Path

import pytest
import torch

from pelago.config.run_file import RunFile
from pelago.core.errors import ConfigError
from tests.worker.corpora import run_file, write_texts, write_tokens
from tests.worker.evaluator.test_held_out_loss import of_folder, word_tokenizer
from tests.worker.tiny_models import checkpoint_folder, config_folder, tensors_of, write_tensors
from worker import device as devices
from worker.dry_run import OPERATIONS_MAX, ResourceEstimate, affordable, describe, estimate
from worker.models.architecture import architecture
from worker.trainer import Trainer


@pytest.fixture
def source(tmp_path: Path) -> str:
    return f"text:{write_texts(tmp_path / 'texts')}"


def lines(run: RunFile, *, step: bool = True) -> dict[str, list[str]]:
    """The lines after the first, by their first word."""
    _, *rest = describe(run, step=step)
    found: dict[str, list[str]] = {}
    for line in rest:
        found.setdefault(line[:11].strip(), []).append(line[11:])
    return found


def test_one_micro_batch_of_the_configured_shape_is_trained_on(source: str) -> None:
    (said,) = lines(run_file(source, micro_batch_size=2))["step"]
    assert said.startswith("2 sequences of 16 tokens, forward and backward on cpu: ")
    assert float(said.rpartition(" ")[2]) == pytest.approx(5.55, abs=0.2)
    (whole,) = lines(run_file(source))["step"]
    assert whole.startswith("4 sequences of 16 tokens")
    assert lines(run_file(source), step=False)["step"] == ["not tried (--no-step)"]


def test_the_first_line_is_about_the_model_and_the_next_about_its_weights(
    source: str, tmp_path: Path
) -> None:
    folder = word_tokenizer(checkpoint_folder(tmp_path / "llama", "llama"))
    run = of_folder(source, folder)
    first = next(describe(run, step=False))
    assert first.startswith(
        f"{folder}, {estimate(architecture(run.model, 0), 16).parameters:,} para"
    )
    origin, unused = lines(run, step=False)["weights"]
    assert origin == f"pretrained, 21 tensors from {folder}/model.safetensors"
    assert unused == "their own tokenizer is not used: data.tokenizer = 'bytes'"
    # With it, or with tokens that it may have made, there is nothing to report.
    with_it = of_folder(source, folder, tokenizer=str(folder))
    said = lines(with_it, step=False)
    assert said["weights"] == [origin]
    # It lacks some of the words.
    (doubt,) = said["beware"]
    assert "of the tokens are" in doubt
    tokens = of_folder(f"tokens:{write_tokens(tmp_path / 'a.bin', 2000)}", folder)
    assert lines(tokens, step=False)["weights"] == [origin]


@pytest.mark.parametrize(
    ("kind", "overrides", "said"),
    [
        ("mamba", {"attn_implementation": "sdpa"}, "does not support an attention implementation"),
        ("gpt2", {"attn_implementation": "flex_attention"}, "does not support an attention"),
        ("gpt2", {"n_head": 5}, "divisible"),
    ],
)
def test_a_configuration_of_no_model_is_refused_before_its_size_is_known(
    source: str, tmp_path: Path, kind: str, overrides: dict[str, object], said: str
) -> None:
    folder = checkpoint_folder(tmp_path / "model", kind)
    keys = run_file(source).model_dump() | {
        "model": {"preset": str(folder), "overrides": overrides}
    }
    with pytest.raises(ConfigError, match=rf"model\.preset = .*: cannot be built: .*{said}"):
        list(describe(RunFile.model_validate(keys), step=True))


def test_a_machine_without_room_for_the_model_says_so_and_reads_the_files_all_the_same(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "free_bytes", lambda: 10**5)
    folder = checkpoint_folder(tmp_path / "llama", "llama")
    found = lines(of_folder(source, folder))
    lack = "; not built: that takes 0.0 GB, and 0.0 GB are free here"
    assert found["weights"] == [f"21 tensors in {folder}/model.safetensors{lack}"]
    assert found["step"] == ["not tried, for want of memory"]
    assert lines(run_file(source))["weights"] == [f"random, drawn from seed 0{lack}"]
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"model\.safetensors is torn"):
        lines(of_folder(source, folder))


def test_as_much_is_tried_as_there_is_memory_and_time_for(source: str) -> None:
    run = run_file(source, micro_batch_size=4)
    step = 4 * 100 + 4 * 1000
    small = ResourceEstimate(parameters=100, sequence_bytes=1000, sequence_operations=1)
    assert affordable(run, small, None) == affordable(run, small, step) == (4, "")
    sequences, why = affordable(run, small, step - 1)
    assert sequences == 1
    assert why == "4 would take 0.0 GB, and 0.0 GB are free here"
    assert affordable(run, small, 1399)[0] == 0
    slow = ResourceEstimate(
        parameters=100, sequence_bytes=1000, sequence_operations=OPERATIONS_MAX // 4 + 1
    )
    assert affordable(run, slow, None) == (1, "4 would take this CPU long")
    slower = ResourceEstimate(
        parameters=100, sequence_bytes=1000, sequence_operations=OPERATIONS_MAX + 1
    )
    assert affordable(run, slower, None) == (0, "1 would take this CPU long")


def test_the_demand_grows_with_the_shape(source: str) -> None:
    small = estimate(architecture(run_file(source).model, 256), 16)
    assert small.parameters == Trainer(run_file(source)).model.elements
    long = estimate(architecture(run_file(source).model, 256), 32)
    assert long.sequence_bytes > 2 * small.sequence_bytes
    assert long.sequence_operations == 2 * small.sequence_operations


def test_a_model_whose_gradient_is_not_finite_is_refused(source: str, tmp_path: Path) -> None:
    folder = checkpoint_folder(tmp_path / "llama", "llama", tie_word_embeddings=False)
    tensors = tensors_of(folder)
    write_tensors(folder, tensors | {"lm_head.weight": torch.full((256, 32), 3e38)})
    with pytest.raises(ConfigError, match="loss or gradient of the first batch is not finite"):
        lines(of_folder(source, folder))


def test_sequences_too_long_for_the_model_end_a_worker_before_it_joins(
    source: str, tmp_path: Path
) -> None:
    """And `check`, with both figures."""
    run = of_folder(source, config_folder(tmp_path / "gpt2", "gpt2"), sequence_length=65)
    for open_run in (Trainer, lines):
        with pytest.raises(ConfigError, match=r"sequence_length = 65: .* for 64 tokens only"):
            open_run(run)


def test_ids_that_the_model_lacks_are_found_without_building_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "free_bytes", lambda: 1)
    file = write_tokens(tmp_path / "a.bin", 4000, vocabulary=300)
    with pytest.raises(ConfigError, match="token id 299, but the model knows ids from 0 to 255"):
        lines(run_file(f"tokens:{file}"))


MEMINFO = "MemTotal:       16000 kB\nMemFree:  10 kB\nMemAvailable:    8000 kB\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8000 << 10),
        ({"memory.max": "max\n", "memory.current": "5000\n"}, 8000 << 10),
        ({"memory.max": "9000\n", "memory.current": "5000\n"}, 9000 - 5000 + 700),
        (
            {"memory/memory.limit_in_bytes": "9000", "memory/memory.usage_in_bytes": "5000"},
            9000 - 5000 + 900,
        ),
    ],
    ids=["no container", "no limit", "version 2", "version 1"],
)
def test_free_memory_is_that_of_the_machine_and_of_the_container(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    """The kernel's cache of files, which it can give up, counts as free."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(MEMINFO)
    group = tmp_path / "sys/fs/cgroup"
    for name, content in files.items():
        path = group / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        (path.parent / "memory.stat").write_text("inactive_file 700\ntotal_inactive_file 900\n")
    assert devices.free_bytes(meminfo, tmp_path) == expected
    assert devices.free_bytes(tmp_path / "none", tmp_path / "none") is None
