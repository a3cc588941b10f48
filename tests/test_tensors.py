from pathlib import Path

import pytest
import safetensors.torch
import torch

from nas.tensors import read_tensors
from search_spaces.errors import InputError
from search_spaces.gate import Gate


def test_a_tensor_of_many_dimensions_is_refused_before_torch_makes_it(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"a": torch.ones([1] * 8)}, path)
    assert read_tensors(path, Gate("weights"))[0]["a"].shape == (1,) * 8
    safetensors.torch.save_file({"a": torch.ones([1] * 9)}, path)
    with pytest.raises(InputError, match=r"^weights holds a tensor of 9 dimensions in 'a'$"):
        read_tensors(path, Gate("weights"))
