"""The data module with a mixture, and with several named validation and test sets, under a Lightning Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from mixtures import mixture_of, write_sources
from resume import row_hashes
from test_datamodule import Model, module_of, one_thread, pytestmark, trainer_of  # noqa: F401 - marks and a fixture

from sharded_eden.errors import StateError, UsageError
from sharded_eden.train.stream import EvaluationStream

MIXTURE = {
    "sources": {
        f"source {k}": {
            "window_db_path": f"source{k}/windows.db",
            "sequence_db_dir": f"source{k}/seqs",
            "weight": weight,
        }
        for k, weight in enumerate([5, 1, 3])
    },
    "phases": [(70, [1, 0.5, 0])],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    write_sources(folder)
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


def options_of(folder: Path, **options: Any) -> dict[str, Any]:
    given = {"train_window_db_path": None, "mixture": MIXTURE, "sequence_db_dir": folder / "source0" / "seqs"}
    return {**given, **options}


class Named(Model):
    """Records each set by its name."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        name = self.trainer.datamodule.val_names[dataloader_idx]
        self.record(name, batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.record(self.trainer.datamodule.test_names[dataloader_idx], batch)

    def record(self, name: str, batch: Any) -> None:
        seen = self.__dict__.setdefault("seen", {})
        seen.setdefault(name, []).extend(
            zip(row_hashes(batch["tokens"]), batch["loss_mask"].sum(1).tolist(), strict=True)
        )
        self.log(f"val_loss/{name}", self.loss(batch), batch_size=len(batch["tokens"]), add_dataloader_idx=False)


SETS: dict[str, Any] = {
    "genes": "source0/windows.db",
    "virus": {"window_db_path": "source1/windows.db", "sequence_db_dir": "source1/seqs"},
    "virus without repeats": {
        "window_db_path": "source1/windows.db", "sequence_db_dir": "source1/seqs", "soft_mask_weight": 0,
    },
}  # fmt: skip


def rows_of(folder: Path, source: int, **options: Any) -> list[tuple[str, float]]:
    stream = EvaluationStream(worlds.dataset(folder / f"source{source}", **options))
    rows = [stream[p] for p in range(len(stream))]
    return [(row_hashes(row["tokens"][None])[0], float(row["loss_mask"].sum())) for row in rows]


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("loop", ["fit", "validate", "test"])
def test_named_sets_have_their_index_name_and_weights(folder, tmp_path, compact, loop):
    sets = {"test_window_db_path" if loop == "test" else "val_window_db_path": SETS}
    module = module_of(folder, **options_of(folder, compact=compact, soft_mask_weight=0.1, num_workers=0, **sets))
    model, trainer = Named(), trainer_of(tmp_path, max_steps=4, limit_train_batches=8, num_sanity_val_steps=0)
    getattr(trainer, loop)(model, datamodule=module)
    assert list(model.seen) == list(SETS)
    assert model.seen["genes"] == rows_of(folder, 0, soft_mask_weight=0.1)
    assert model.seen["virus"] == rows_of(folder, 1, soft_mask_weight=0.1)
    assert model.seen["virus without repeats"] == rows_of(folder, 1, soft_mask_weight=0)
    assert [weight for _, weight in model.seen["virus"]] != [
        weight for _, weight in model.seen["virus without repeats"]
    ]
    assert {f"val_loss/{name}" for name in SETS} <= set(trainer.callback_metrics)
    assert module.val_names == ([] if loop == "test" else list(SETS))


def test_one_path_stays_one_dataloader(folder):
    module = module_of(folder, **options_of(folder, val_window_db_path="source0/windows.db"))
    assert len(module.val_dataloader()) == 6
    assert module.val_names == [""]
    assert isinstance(module_of(folder, **options_of(folder, val_window_db_path=SETS)).val_dataloader(), list)


def test_a_module_trains_on_its_mixture_and_resumes(folder, tmp_path):
    folders = [folder / f"source{k}" for k in range(3)]
    with_phases = mixture_of(folders, rc_aug=True)
    expected = row_hashes(torch.stack([with_phases[p]["tokens"] for p in range(160)]))
    model, trainer = Model(), trainer_of(tmp_path, max_steps=10, max_epochs=-1)
    trainer.fit(model, datamodule=module_of(folder, **options_of(folder)))
    assert [row for step in model.steps for row in step] == expected[:40]
    trainer.save_checkpoint(tmp_path / "at40.ckpt")
    again, resumed = Model(), trainer_of(tmp_path, max_steps=40, max_epochs=-1)
    module = module_of(folder, **options_of(folder, micro_batch_size=4, compact=True))
    resumed.fit(again, datamodule=module, ckpt_path=tmp_path / "at40.ckpt")
    assert [row for step in again.steps for row in step] == expected[40:]
    assert module.consumed_samples == 160
    changed = {**MIXTURE, "phases": [(39, [1, 0.5, 0])]}
    with pytest.raises(StateError, match=r"phases began at \[0\] before it, now at \[0, 39\]"):
        trainer_of(tmp_path, max_steps=40, max_epochs=-1).fit(
            Model(),
            datamodule=module_of(folder, **options_of(folder, mixture=changed)),
            ckpt_path=tmp_path / "at40.ckpt",
        )
    later = {**MIXTURE, "phases": [(40, [0, 1, 0])]}
    module = module_of(folder, **options_of(folder, mixture=later))
    trainer_of(tmp_path, max_steps=12, max_epochs=-1).fit(
        last := Model(), datamodule=module, ckpt_path=tmp_path / "at40.ckpt"
    )
    virus = {row for row, _ in rows_of(folder, 1)} | {row for row, _ in rows_of(folder, 1, rc_aug=True)}
    assert len(last.steps) == 2
    assert len({row for step in last.steps for row in step} & virus) > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mixture": None}, "give either train_window_db_path or mixture"),
        ({"train_window_db_path": "source0/windows.db"}, "give either train_window_db_path or mixture"),
        ({"val_window_db_path": {}}, "val_window_db_path must be a path, or a dict"),
        ({"val_window_db_path": {"": "x"}}, "with a name for each set"),
        ({"val_window_db_path": {"a": {"stride": 1}}}, r"val_window_db_path\['a'\] has no window_db_path"),
        ({"val_window_db_path": {"a": 5}}, r"window_db_path of val_window_db_path\['a'\] must be a path, not 5"),
        (
            {"test_window_db_path": {"a": {"window_db_path": "x", "compact": True}}},
            "compact is an option of the whole data",
        ),
        ({"val_window_db_path": {"a": {"window_db_path": "x", "weights": 1}}}, "has no key 'weights'"),
    ],
)
def test_invalid_arguments_are_refused(folder, options, words):
    with pytest.raises(UsageError, match=words):
        module_of(folder, **options_of(folder, **options))


def test_a_compact_batch_without_a_trainer_is_refused_where_sets_differ(folder):
    module = module_of(folder, **options_of(folder, compact=True, val_window_db_path=SETS))
    batch = next(iter(module.val_dataloader()[2]))
    with pytest.raises(UsageError, match="without a running Trainer the set of a compact batch"):
        module.on_after_batch_transfer(batch, 2)
    same = module_of(folder, **options_of(folder, compact=True, val_window_db_path="source0/windows.db"))
    assert "tokens" in same.on_after_batch_transfer(next(iter(same.val_dataloader())), 0)
