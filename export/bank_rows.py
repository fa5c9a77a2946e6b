"""Some occluders of a bank's file, read without the others: a bank of 1,000 occluders takes 600 MB."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .bank import METADATA_KEY
from .bank_header import BankHeader
from .errors import InputError
from .records import read_record

_LENGTH = 8  # bytes before the header of a safetensors file: its length, least significant first


def read_rows(path: Path, rows: Collection[int]) -> tuple[str, dict[int, Tensor]]:
    """Return `OccluderBank.hash` of a bank, and the occluders of some rows, float32 [H, W, 3], as the file holds them.

    All of the file is read, a row at a time. What else `OccluderBank.load` checks is for the hash to vouch for.

    Raises
    ------
    InputError
        The file is not there, or no bank.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as checked:  # its header is then as it must be
            text = (checked.metadata() or {})[METADATA_KEY]
            if checked.get_slice("occluders").get_dtype() != "F32":
                raise ValueError("occluders are not float32")
        header = read_record(BankHeader, text, path, "train the bank again", "bank header is not valid")
        with path.open("rb") as file:
            return _read(file, header, rows)
    except InputError:
        raise
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{path}: not a readable occluder bank ({error}); train or copy the bank again") from error


def _read(file: BinaryIO, header: BankHeader, rows: Collection[int]) -> tuple[str, dict[int, Tensor]]:
    length = int.from_bytes(file.read(_LENGTH), "little")
    facts: dict[str, Any] = json.loads(file.read(length))["occluders"]
    start, stop = facts["data_offsets"]
    count, *shape = facts["shape"]
    digest, found = hashlib.sha256(header.to_json().encode()), dict[int, Tensor]()
    file.seek(_LENGTH + length + start)
    for row in range(count):
        content = bytearray(file.read((stop - start) // count))
        digest.update(content)
        if row in rows:
            found[row] = torch.frombuffer(content, dtype=torch.float32).reshape(shape)
    return f"sha256:{digest.hexdigest()}", found
