"""`ExampleOptions`: how windows are read and what an example holds, declared once for all classes that make a dataset.

`ShardedEdenDataset`, `ShardedEdenDataModule` and `ShardedEdenDatasetProvider` take every option declared here, and pass them on
as one object. To add an option, add a field and use it in `ArrayDataset.__init__`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import wraps
from typing import Any, Literal, TypeVar, get_args, get_type_hints

import numpy as np

from sharded_eden.errors import UnknownArgument, UsageError, shown
from sharded_eden.format.geometry import integer
from sharded_eden.format.kinds import refuse_url
from sharded_eden.format.sqlite import IOMode
from sharded_eden.load.access_log import LogFormat, check_log
from sharded_eden.load.read.sequences import ReadMode
from sharded_eden.storage.urls import folder_url, is_url

T = TypeVar("T")
PathLike = str | os.PathLike[str]

Include = bool | Literal["with_tags"]
"""Whether rows have a special token: all, none, or those with control tags."""

MOST_IN_FLIGHT, MOST_SECONDS = 1024, 86_400

WITH_TAGS: Literal["with_tags"] = "with_tags"

Objective = Literal["causal", "mlm"]
"""What labels are: the next token, or the tokens before some were masked."""


@dataclass(frozen=True, kw_only=True)
class ExampleOptions:
    """The options of an example. All have defaults."""

    window_min_length_threshold: int | None = None
    """The threshold of the window database; None accepts any."""
    create_attention_mask: bool = False
    """Add the causal mask to each example."""
    use_control_tags: bool = False
    """Put the ids of `<ctrl_NAME>` after BOS; NAME is the lower-cased ID before its first `__`."""
    tags: PathLike | None = None
    """A table of tags by sample or contig, put after BOS; see `sharded_eden.load.encode.tag_table`."""
    tag_template: str | None = None
    """The text of a tag, with the columns of the table in braces; None is `{tag}`."""
    tag_dropout: float = 0.0
    """The probability that a field of a tag is replaced by `None`, by (seed, epoch, window). Training only."""
    include_bos: Include = True
    """Begin rows with BOS; "with_tags": only where there are control tags."""
    include_sep: Include = True
    """Put SEP before the bases; "with_tags": only where there are control tags."""
    include_eos: bool = True
    """End the bases with EOS."""
    bos_id: int | None = None
    """The id of BOS; None takes that of the tokenizer, see `sharded_eden.load.encode.tokenizer.encoding_of`."""
    eos_id: int | None = None
    """The id of EOS; None takes that of the tokenizer."""
    sep_id: int | None = None
    """The id of SEP; None takes that of the tokenizer, or EOS."""
    pad_id: int | None = None
    """The id of PAD; None takes that of the tokenizer, or EOS."""
    mask_ambiguous: bool = False
    """No loss on labels other than A, C, G and T."""
    soft_mask_weight: float = 1.0
    """The weight of lower-case labels (repeats) in the loss mask; Evo 2 was trained with 0.1."""
    loss_on_eos: bool = False
    """Count the label EOS in the loss."""
    objective: Objective = "causal"
    """`causal`: labels are the next tokens. `mlm`: masked language modelling, see `sharded_eden.load.encode.masking`."""
    mlm_share: float = 0.15
    """The expected share of the bases A, C, G and T that are masked."""
    mlm_span: int = 1
    """The length of masked spans, in bases."""
    mask_id: int | None = None
    """The id of MASK; None takes that of the tokenizer."""
    compact: bool = False
    """Send uint8 codes from workers to the device, where `expander()` makes the tensors."""
    window_size: int | None = None
    """The bases of a window where they are not `seq_length`, for tokenizers of several bases a token."""
    derive_windows: bool | PathLike = False
    """Where the window database has another window size, stride or threshold, use one that is derived from it: made on first
    use, beside it or in this folder. See `sharded_eden.derive`."""
    packed: bool = False
    """Fill each row with several windows; see `sharded_eden.load.locate.packs`."""
    log_windows: bool = False
    """Write a log of the windows visited; see `sharded_eden.load.access_log`."""
    log_dir: PathLike | None = None
    """The folder of that log; None is the current folder."""
    log_format: LogFormat = "csv"
    """`csv`, or `parquet`, which needs pyarrow; `sharded_eden.read_access_logs` reads both."""
    log_file_bytes: int = 1 << 28
    """A file of the log is closed when it has this many bytes (with `parquet`, before it is Parquet, and at most 32 MB), and
    another one begun."""
    skip_stats: bool = True
    """Do not count and log the windows, contigs and samples of the split."""
    io: IOMode = "auto"
    """How database files are read: `read` and `auto` by positioned reads, `mmap` mapped into memory."""
    read_with: ReadMode = "auto"
    """How sequences are read: `blob`, `substr`, or `auto` for BLOB I/O wherever a database allows it."""
    read_ahead: bool = True
    """Announce windows that are not in the page cache to the kernel: those of a batch before the first is read, and those of
    the worker's next batches."""
    requests_in_flight: int = 64
    """Requests of each worker to object storage at the same time, where `sequence_db_dir` is a URL."""
    request_seconds: float = 120.0
    """How long a request to object storage is tried before an error is raised."""
    cache_dir: PathLike | None = None
    """Where window databases given as URLs are copied to, and sequence databases with `cache_bytes`; None is
    `~/.cache/sharded-eden`, or that of XDG_CACHE_HOME."""
    cache_bytes: int | None = None
    """Copy whole sequence databases from object storage to `cache_dir` while the job reads, and read from those that are
    complete; all copies in the folder together have at most so many bytes. None: no copies."""

    def __post_init__(self) -> None:
        """Refuse values of another type than declared: a string would count as True, or fail at the first row.

        Raises:
            UsageError: with the option, its value and the values that it can have.
        """
        for option in fields(self):
            name, value = option.name, getattr(self, option.name)
            if option.type == "Include":
                boolean(value, name, WITH_TAGS)
            elif option.type == "bool":
                boolean(value, name)
            elif option.type == "float":
                if not _is_number(value):
                    raise UsageError(f"{name} must be a number, not {shown(value)}")
                if type(value) not in {int, float}:
                    object.__setattr__(self, name, float(value))  # a NumPy number, which JSON and SQLite do not accept
            elif name.endswith("_id") or value is None:
                continue  # ids are checked together with those of the tokenizer
            elif option.type in {"int", "int | None"}:
                object.__setattr__(self, name, integer(value, name))
        self._check_objective()
        if self.tags is not None:
            object.__setattr__(self, "tags", absolute_path(self.tags, "tags"))
            if self.use_control_tags:
                raise UsageError("tags and use_control_tags exclude each other: a row has one tag")
        elif self.tag_template is not None or self.tag_dropout:
            raise UsageError("tag_template and tag_dropout need a table: pass tags=")
        if not 0 <= self.tag_dropout <= 1:
            raise UsageError(f"tag_dropout must be from 0 to 1, not {self.tag_dropout}")
        if not isinstance(self.derive_windows, bool):
            absolute_path(self.derive_windows, "derive_windows")
        if not 1 <= self.requests_in_flight <= MOST_IN_FLIGHT:
            raise UsageError(
                f"requests_in_flight must be from 1 to {MOST_IN_FLIGHT}, not {shown(self.requests_in_flight)}"
            )
        if not 0 < self.request_seconds <= MOST_SECONDS:  # NaN is refused, too
            raise UsageError(f"request_seconds must be above 0 and at most {MOST_SECONDS}, not {self.request_seconds}")
        if self.cache_dir is not None:
            absolute_path(self.cache_dir, "cache_dir")
        if self.cache_bytes is not None and self.cache_bytes < 1:
            raise UsageError(f"cache_bytes must be at least 1, not {shown(self.cache_bytes)}")
        check_log(self.log_format, self.log_file_bytes)
        if self.log_dir is not None:
            absolute_path(self.log_dir, "log_dir")

    def _check_objective(self) -> None:
        if self.objective not in get_args(Objective):
            raise UsageError(f"objective must be one of {', '.join(get_args(Objective))}, not {shown(self.objective)}")
        if self.objective == "mlm":
            for name, why in (
                ("create_attention_mask", "the mask is causal, but masked bases are predicted from both sides"),
                ("loss_on_eos", "EOS is never masked"),
            ):
                if getattr(self, name):
                    raise UsageError(f'{name}=True does not go with objective="mlm": {why}. Leave it False')
            return
        for option in fields(self):
            if option.name in {"mlm_share", "mlm_span", "mask_id"} and getattr(self, option.name) != option.default:
                raise UsageError(f'{option.name} needs objective="mlm", but the objective is "causal"')

    @property
    def has_tags(self) -> bool:
        """Whether rows have tags: control tags, or those of a table."""
        return bool(self.use_control_tags) or self.tags is not None

    @property
    def has_bos(self) -> bool:
        """Whether rows begin with BOS."""
        return bool(self.has_tags if self.include_bos == WITH_TAGS else self.include_bos)

    @property
    def has_sep(self) -> bool:
        """Whether SEP comes before the bases."""
        return bool(self.has_tags if self.include_sep == WITH_TAGS else self.include_sep)

    @classmethod
    def of(cls, holder: object) -> ExampleOptions:
        """Return the options that an object holds as attributes of the same names."""
        return cls(**{option.name: getattr(holder, option.name) for option in fields(cls)})


def takes_options(function: Callable[..., T]) -> Callable[..., T]:
    """Show all options in the signature of an `__init__` that takes `**options`, and refuse unknown ones.

    `help` and `inspect.signature` then list them.
    """
    signature = inspect.signature(function)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    added = [
        inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=option.type)
        for option in fields(ExampleOptions)
        if option.name not in signature.parameters
    ]
    function.__signature__ = signature.replace(parameters=[*named, *added])  # type: ignore[attr-defined]
    return _checked(function)


def refuses_unknown(cls: type[T]) -> type[T]:
    """Let the `__init__` of a dataclass raise `UnknownArgument` for arguments that it does not have."""
    cls.__init__ = _checked(cls.__init__)  # type: ignore[method-assign]
    return cls


def _checked(init: Callable[..., T]) -> Callable[..., T]:
    """Return an `__init__` that refuses unknown keyword arguments, with the closest name that it has."""
    names = [name for name in inspect.signature(init).parameters if name != "self"]

    @wraps(init)
    def checked(self: Any, *arguments: Any, **named: Any) -> T:
        for name in named:
            if name not in names:
                near = get_close_matches(name, names, n=1)
                raise UnknownArgument(
                    f"{type(self).__name__}() got an unexpected keyword argument {shown(name)}"
                    + (f". Did you mean {near[0]}?" if near else "")
                )
        return init(self, *arguments, **named)

    return checked


def with_option_fields(cls: type[T]) -> type[T]:
    """Declare every option as a field of a class that becomes a dataclass, unless the class declares it."""
    hints = get_type_hints(ExampleOptions)
    for option in fields(ExampleOptions):
        if option.name not in cls.__annotations__:
            cls.__annotations__[option.name] = hints[option.name]
            setattr(cls, option.name, option.default)
    return cls


def path_or_url(path: PathLike, name: str) -> str:
    """Return a URL in object storage without slashes at its end, or an absolute path.

    Raises:
        UsageError: it is neither, or a URL of a scheme that is not read.
    """
    return folder_url(path, name) if isinstance(path, str) and is_url(path) else absolute_path(path, name)


def absolute_path(path: PathLike, name: str) -> str:
    """Return an absolute path, without resolving links: it means the same file after the process changes its folder.

    Args:
        path: the path.
        name: the argument that holds it, for the error.

    Raises:
        UsageError: it is not a path, or is a URL.
    """
    try:
        refuse_url(path, name)
        return os.path.abspath(os.fsdecode(path))
    except TypeError:
        raise UsageError(f"{name} must be a path, not {shown(path)}") from None


def boolean(value: Any, name: str, *others: str) -> Any:
    """Return an argument that is True, False, or one of some strings.

    Raises:
        UsageError: it is anything else. A string such as "no" would count as True.
    """
    if isinstance(value, bool | np.bool_) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    if isinstance(value, str) and value in others:
        return value
    raise UsageError(f"{name} must be one of {', '.join(map(repr, (True, False, *others)))}, not {shown(value)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
