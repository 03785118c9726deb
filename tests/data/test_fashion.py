"""Fashion-MNIST: the files are the published ones, and a file that is not is never read in silence."""

import hashlib
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipbook.data import DataFileError, Dataset, fashion, fashion_mnist

# From the table of the official repository, github.com/zalandoresearch/fashion-mnist, README.md.
PUBLISHED_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
SMALL = "t10k-labels-idx1-ubyte.gz"


@pytest.fixture(scope="module")
def images():
    return fashion_mnist()


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """A folder with copies of the files, which the reader reads while this module runs."""
    folder = tmp_path_factory.mktemp("data") / "files"
    shutil.copytree(fashion.FOLDER, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fashion, "FOLDER", folder)
        yield folder


@pytest.mark.parametrize("name", PUBLISHED_MD5)
def test_the_files_are_the_published_ones(name):
    assert hashlib.md5((fashion.FOLDER / name).read_bytes()).hexdigest() == PUBLISHED_MD5[name]


def test_the_licence_lies_beside_the_files():
    licence = (fashion.FOLDER / "LICENSE").read_text(encoding="utf-8")
    assert "MIT License" in licence and "Zalando SE" in licence


def test_sizes_types_and_range(images):
    assert isinstance(images, Dataset)
    for inputs, labels, count in ((images[0], images[1], 60_000), (images[2], images[3], 10_000)):
        assert inputs.shape == (count, 1, 28, 28) and inputs.dtype == torch.float32
        assert inputs.min() == 0 and inputs.max() == 1
        assert labels.dtype == torch.int64
        assert labels.bincount().tolist() == [count // 10] * 10


def test_pixels_are_whole_multiples_of_one_in_255_nearest_in_float32(images):
    pixels = (images.test_inputs.double() * 255).round()
    assert torch.equal((pixels / 255).float(), images.test_inputs)


def test_images_stand_upright_beside_their_labels(images):
    """Trousers (label 1) are tall and narrow, sneakers (label 7) leave the top of the picture empty."""
    ink = {label: images.train_inputs[images.train_labels == label].mean(0)[0] for label in (1, 7)}
    assert (ink[1].sum(0) > 1).sum() < (ink[1].sum(1) > 1).sum()
    assert ink[7][:6].sum() < ink[7][-14:-8].sum() / 10


def test_each_call_gives_new_tensors(images):
    again = fashion_mnist()
    assert torch.equal(again.test_inputs, images.test_inputs)
    again.test_inputs.zero_()
    again.test_labels.zero_()
    assert images.test_inputs.any() and fashion_mnist().test_labels.any()


@given(data=st.data())
def test_a_changed_byte_is_an_error_or_changes_nothing(copies, data):
    path = copies / SMALL
    good = path.read_bytes()
    content = fashion._content(SMALL)
    position = data.draw(st.integers(0, len(good) - 1))
    flip = data.draw(st.integers(1, 255))
    try:
        path.write_bytes(good[:position] + bytes([good[position] ^ flip]) + good[position + 1 :])
        assert fashion._content(SMALL) == content
    except DataFileError as error:
        assert SMALL in str(error) and "git checkout" in str(error)
    finally:
        path.write_bytes(good)


@given(length=st.integers(0, 5000))
def test_a_truncated_file_is_an_error(copies, length):
    path = copies / SMALL
    good = path.read_bytes()
    path.write_bytes(good[:length])
    try:
        with pytest.raises(DataFileError, match=SMALL):
            fashion._content(SMALL)
    finally:
        path.write_bytes(good)


def test_other_data_that_unpacks_is_an_error(copies):
    path, good = copies / SMALL, (copies / SMALL).read_bytes()
    shutil.copy(copies / "train-labels-idx1-ubyte.gz", path)
    try:
        with pytest.raises(DataFileError, match="other data"):
            fashion._content(SMALL)
    finally:
        path.write_bytes(good)


@pytest.mark.parametrize("name", PUBLISHED_MD5)
def test_a_missing_file_is_named_with_the_remedy(tmp_path, monkeypatch, name):
    monkeypatch.setattr(fashion, "FOLDER", tmp_path)
    with pytest.raises(DataFileError, match=f"{name} is missing.*git checkout.*zalandoresearch"):
        fashion._content(name)
