"""What is kept of items comes back as it went in: by row, from several domains, padded to the longest asked for."""

import pytest
import torch

from mmsr_pt.batch import ItemInputs
from mmsr_pt.data.activations import ActivationStore, Layout, with_activations

LENGTHS = torch.tensor([3, 1, 4, 2])


def make_store(directory, seed: int, dtype: str = "float32"):
    """A store of four items and what was written: titles [4, 4, 2] with zeros as padding, pictures [4, 2, 3]."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(4) < LENGTHS[:, None]
    text = torch.randn(4, 4, 2, generator=generator) * mask[:, :, None]
    vision = torch.randn(4, 2, 3, generator=generator)
    directory.mkdir()
    layout = Layout(4, dtype, text_width=2, num_tokens=10, vision_shape=(2, 3))
    store = ActivationStore.create(directory, layout, LENGTHS)
    for rows in (torch.tensor([2, 0]), torch.tensor([3, 1])):
        longest = int(LENGTHS[rows].max())
        store.write(rows, text[rows, :longest], mask[rows, :longest], vision[rows])
    return ActivationStore(directory), text, mask, vision


def test_reads_what_was_written_in_any_order(tmp_path):
    store, text, mask, vision = make_store(tmp_path / "a", seed=0)
    rows = torch.tensor([3, 0, 3])
    found_text, found_mask, found_vision = store.read(rows)
    assert torch.equal(found_text, text[rows, :3]), "padded to the longest of those asked for: 3 tokens"
    assert torch.equal(found_mask, mask[rows, :3])
    assert torch.equal(found_vision, vision[rows])


def test_size_is_known_before_anything_is_written(tmp_path):
    make_store(tmp_path / "a", seed=0, dtype="bfloat16")
    layout = Layout(4, "bfloat16", text_width=2, num_tokens=10, vision_shape=(2, 3))
    assert layout.num_bytes == 2 * (10 * 2 + 4 * 2 * 3) + 8 * 4
    assert layout.num_bytes == sum(file.stat().st_size for file in (tmp_path / "a").glob("*.bin"))


def test_bfloat16_rounds_to_its_eight_bits(tmp_path):
    store, text, _, _ = make_store(tmp_path / "a", seed=0, dtype="bfloat16")
    found = store.read(torch.arange(4))[0]
    assert torch.equal(found, text.bfloat16())


def test_items_of_two_domains_get_the_activations_of_their_own(tmp_path):
    first, second = (make_store(tmp_path / name, seed) for seed, name in enumerate("ab"))
    ids = torch.tensor([5, 1, 6, 0])  # rows 1 and 2 of the second domain, which starts at item 4
    items = with_activations(ItemInputs(ids), [first[0], second[0]], bases=[0, 4])
    assert torch.equal(items.image_activations, torch.stack([second[3][1], first[3][1], second[3][2], first[3][0]]))
    titles = torch.stack([second[1][1], first[1][1], second[1][2], first[1][0]])
    assert torch.equal(items.title_activations, titles), "padded to the longest of both domains: 4 tokens"
    assert items.title_mask.sum(dim=1).tolist() == [1, 1, 4, 3]
    assert torch.equal(items.ids, ids)


def test_a_store_of_one_modality_leaves_the_other_alone(tmp_path):
    layout = Layout(3, "float32", vision_shape=(2,))
    tmp_path.joinpath("v").mkdir()
    store = ActivationStore.create(tmp_path / "v", layout, None)
    store.write(torch.tensor([1]), None, None, torch.tensor([[1.0, 2.0]]))
    title_ids = torch.tensor([[7]])
    items = with_activations(ItemInputs(torch.tensor([1]), title_ids=title_ids), [store], [0])
    assert items.image_activations.tolist() == [[1.0, 2.0]]
    assert items.title_activations is None
    assert items.title_ids is title_ids


def test_int8_keeps_each_token_and_channel_to_half_a_127th_of_its_largest_value(tmp_path):
    store, text, mask, vision = make_store(tmp_path / "a", seed=0, dtype="int8")
    found_text, found_mask, found_vision = store.read(torch.arange(4))
    assert torch.equal(found_mask, mask)
    for found, exact in ((found_text, text), (found_vision, vision)):
        bound = exact.abs().amax(dim=-1, keepdim=True) / 127 / 2
        assert ((found - exact).abs() <= bound * 1.0001).all()
        assert (found != exact).any()
    layout = Layout(4, "int8", text_width=2, num_tokens=10, vision_shape=(2, 3))
    assert layout.num_bytes == 10 * (2 + 4) + 4 * (2 * 3 + 2 * 4) + 8 * 4
    assert layout.num_bytes == sum(file.stat().st_size for file in (tmp_path / "a").glob("*.bin"))


def test_int8_measures_what_it_loses(tmp_path):
    tmp_path.joinpath("v").mkdir()
    store = ActivationStore.create(tmp_path / "v", Layout(2, "int8", vision_shape=(3,)), None)
    written = torch.tensor([[127.0, 0.4, -3.0], [0.0, 0.0, 0.0]])
    store.write(torch.arange(2), None, None, written)
    assert store.read(torch.arange(2))[2].tolist() == [[127.0, 0.0, -3.0], [0.0, 0.0, 0.0]]
    error = store.errors["vision"]
    assert error.lost == pytest.approx(0.4**2)
    assert error.total == pytest.approx(127**2 + 0.4**2 + 9)
    assert error.relative == pytest.approx((error.lost / error.total) ** 0.5)


def test_a_store_in_the_making_knows_what_is_done(tmp_path):
    store, *_ = make_store(tmp_path / "a", seed=0)
    store.mark_done(torch.tensor([2, 0]))
    again = ActivationStore(tmp_path / "a")
    assert again.done.tolist() == [1, 0, 1, 0]
    again.finish()
    assert not (tmp_path / "a" / "done.bin").exists()
