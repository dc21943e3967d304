"""Sources: each layout as its owner hands it out, and the rule of the drawn domains."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from mmsr_pt.data.domain import Domain
from mmsr_pt.data.shards.build import BuildOptions, build_domain
from mmsr_pt.data.sources import SOURCES
from mmsr_pt.data.sources.hm import HM
from mmsr_pt.data.sources.look import KINDS, LOOKS, NUM_KINDS, NUM_STYLES, draw_picture
from mmsr_pt.data.sources.synthetic import KIND_STEP, STYLE_STEP, WANDERING, Synthetic, World
from mmsr_pt.data.sources.table import Table
from mmsr_pt.log import UserError
from tests.conftest import real_data
from tests.data.raw import write_picture, write_table


def write_hm(root: Path) -> Path:
    root.mkdir()
    header = "article_id,prod_name,product_type_no,product_type_name,colour_group_name,index_name,detail_desc"
    articles = [
        '0108775015,Strap top,253,Vest top,Black,Ladieswear,"Jersey top, narrow straps."',
        "0110065001,OP T-shirt,306,Bra,White,Lingeries/Tights,",
    ]
    (root / "articles.csv").write_text("\n".join([header, *articles]) + "\n")
    purchases = [
        "1970-01-11,00ff,0110065001,0.1,1",
        "1970-01-02,00ff,0108775015,0.1,2",
        "1970-13-02,00ff,0108775015,0.1,2",
    ]
    (root / "transactions_train.csv").write_text(
        "\n".join(["t_dat,customer_id,article_id,price,sales_channel_id", *purchases]) + "\n"
    )
    write_picture(root / "images" / "010" / "0108775015.jpg")
    return root


def test_hm_titles_join_name_tags_and_description_and_ids_keep_their_zeros(tmp_path: Path) -> None:
    root = write_hm(tmp_path / "hm")
    raw = HM(root).read(tmp_path, with_images=True)
    items = raw.items.collect()
    assert items["item_id"].to_list() == ["0108775015", "0110065001"]
    assert items["title"].to_list() == [
        "Strap top, Vest top, Black, Ladieswear. Jersey top, narrow straps.",
        "OP T-shirt, Bra, White, Lingeries/Tights",
    ]
    assert items["image"].to_list() == [str(root / "images" / "010" / "0108775015.jpg"), None]
    interactions = raw.interactions.collect()
    assert interactions["item_id"].to_list() == ["0110065001", "0108775015", "0108775015"]
    assert interactions["time"].to_list() == [10, 1, None]  # days since 1970-01-01


def test_hm_takes_categories_from_the_columns_that_are_there(tmp_path: Path) -> None:
    root = write_hm(tmp_path / "hm")
    raw = HM(root).read(tmp_path, with_images=False)
    assert raw.items.collect()["categories"].to_list() == [["Ladieswear", "Vest top"], ["Lingeries/Tights", "Bra"]]
    assert raw.seconds_per_unit == 86400
    file = root / "articles.csv"
    header, first, second = file.read_text().splitlines()
    more = [header + ",index_group_name,product_group_name", first + ",Ladieswear, Garment Upper body ", second + ",,"]
    file.write_text("\n".join(more) + "\n")
    found = HM(root).read(tmp_path, with_images=False).items.collect()["categories"].to_list()
    assert found == [["Ladieswear", "Garment Upper body", "Vest top"], ["Lingeries/Tights", "Bra"]]


def test_hm_names_a_missing_column_and_those_found(tmp_path: Path) -> None:
    root = write_hm(tmp_path / "hm")
    file = root / "transactions_train.csv"
    file.write_text(file.read_text().replace("t_dat", "day"))
    with pytest.raises(
        UserError, match=r"transactions_train\.csv has no column t_dat; its columns are: day, customer_id"
    ):
        HM(root).read(tmp_path, with_images=True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1260759108", 1260759108),
        (" 1260759108 ", 1260759108),
        ("1260759108.75", 1260759108.75),
        ("1e3", 1000),
        ("1970-01-02", 86400),
        ("1970-01-01 00:01:40", 100),
        ("1970-01-01T00:01:40.500", 100.5),
        ("1970-01-01T00:01:40Z", 100),
        ("1970-01-01T01:01:40+01:00", 100),
        ("1970-01-01 00:02", 120),
        ("yesterday", None),
        ("", None),
        ("nan", None),
        ("inf", None),
    ],
)
def test_table_reads_times_as_numbers_and_dates(tmp_path: Path, text: str, seconds: float | None) -> None:
    root = write_table(tmp_path / "raw", [("u", "i", text)], {"i": "title"})
    assert Table(root).read(tmp_path, with_images=True).interactions.collect()["time"].to_list() == [seconds]


def test_table_reads_parquet_of_any_types_like_csv(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    (root / "images").mkdir(parents=True)
    items = pl.DataFrame({"item_id": [7, 8], "title": ["a", "b"], "category": [3, None]})
    items.write_parquet(root / "items.parquet")
    frame = pl.DataFrame({"user_id": [1, 2], "item_id": [7, 8], "timestamp": [0, 86400 * 10**6]})
    for kind, expected in ((pl.Int64, [0, 86400 * 10**6]), (pl.Datetime("us"), [0, 86400]), (pl.Float32, [0, 86400e6])):
        frame.with_columns(pl.col("timestamp").cast(kind)).write_parquet(root / "interactions.parquet")
        raw = Table(root).read(tmp_path, with_images=True)
        assert raw.interactions.collect().rows() == [("1", "7", expected[0]), ("2", "8", expected[1])]
    assert raw.items.collect()["title"].to_list() == ["a, 3", "b"]


def test_table_appends_the_category_or_the_columns_asked_for(tmp_path: Path) -> None:
    root = write_table(tmp_path / "raw", [("u", "1", 1)], {})
    (root / "items.csv").write_text("item_id,title,category,brand\n01,A|B,x|y,\n1,C,,Acme\n")
    read = lambda *columns: Table(root, columns).read(tmp_path, True).items.collect()["title"].to_list()  # noqa: E731
    assert read() == ["A|B, x, y", "C"]
    assert read("brand", "title") == ["A, B", "Acme, C"]
    with pytest.raises(UserError, match="no column colour; its columns are: item_id, title, category, brand"):
        read("title", "colour")


def test_table_categories_are_the_parts_of_one_column(tmp_path: Path) -> None:
    root = write_table(tmp_path / "raw", [("u", "1", 1)], {"1": "a"})
    assert Table(root).read(tmp_path, False).items.collect()["categories"].to_list() == [[]]
    (root / "items.csv").write_text("item_id,title,category,categories\n1,A,x| y|x|,p\n2,B,,q\n3,C,z,r\n")
    for columns in ((), ("title", "categories")):
        raw = Table(root, columns).read(tmp_path, False)
        assert [names or [] for names in raw.items.collect()["categories"].to_list()] == [["x", "y"], [], ["z"]]
        assert raw.seconds_per_unit == 1
    assert raw.items.collect()["title"].to_list() == ["A, p", "B, q", "C, r"]


def test_table_prefers_jpg_and_finds_any_suffix_in_any_folder(tmp_path: Path) -> None:
    root = write_table(tmp_path / "raw", [("u", "1", 1)], {"1": "a", "2": "b", "3.x": "c", "4": "d"}, pictures=[])
    for name in ("1.png", "1.jpg", "deep/2.JPEG", "3.x.webp", "notes.txt"):
        write_picture(root / "images" / name) if "txt" not in name else (root / "images" / name).write_text("")
    found = Table(root).read(tmp_path, with_images=True).items.collect()["image"].to_list()
    images = root / "images"
    assert found == [f"{images}/1.jpg", f"{images}/deep/2.JPEG", f"{images}/3.x.webp", None]


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no directory"):
        Table(tmp_path / "nowhere").read(tmp_path, True)
    root = write_table(tmp_path / "raw", [("u", "1", 1)], {"1": "a"})
    (root / "images" / "1.jpg").unlink()
    (root / "images").rmdir()
    with pytest.raises(UserError, match=r"images is missing.*--modalities text"):
        Table(root).read(tmp_path, with_images=True)
    assert Table(root).read(tmp_path, with_images=False).items.collect()["image"].to_list() == [None]
    (root / "interactions.csv").rename(root / "clicks.csv")
    with pytest.raises(UserError, match=r"interactions\.csv is missing; .* holds: clicks\.csv, items\.csv"):
        Table(root).read(tmp_path, with_images=False)


def test_two_tables_of_one_name_are_ambiguous(tmp_path: Path) -> None:
    root = write_table(tmp_path / "raw", [("u", "1", 1)], {"1": "a"})
    pl.DataFrame({"item_id": ["1"], "title": ["a"]}).write_parquet(root / "items.parquet")
    with pytest.raises(UserError, match=r"both items\.csv and items\.parquet"):
        Table(root).read(tmp_path, with_images=True)


def test_an_unknown_source_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match="unknown source 'tabel'; known: .*table.* Did you mean 'table'"):
        _ = SOURCES["tabel"]


@pytest.mark.parametrize("name", list(SOURCES))
def test_every_source_has_help_for_each_of_its_flags(name: str) -> None:
    assert SOURCES[name].__doc__
    assert hasattr(SOURCES[name], "read")


def test_real_hm_has_a_title_and_a_picture_for_every_article(tmp_path: Path) -> None:
    items = HM(real_data("hm")).read(tmp_path, with_images=True).items.collect()
    assert items.height == 2795
    assert items.null_count().sum_horizontal().item() == 0
    assert items["item_id"].str.starts_with("0").all()


# ---- drawn domains


def drawn(tmp_path: Path, variant: str, **more: int) -> tuple[Domain, World]:
    """A drawn domain on disk and the world behind it."""
    source = Synthetic(variant=variant, **more)  # type: ignore[arg-type]
    scratch = tmp_path / f"scratch-{variant}"
    scratch.mkdir()
    raw = source.read(scratch, with_images=False)
    domain = build_domain(raw, tmp_path / variant, BuildOptions(modalities=("text",), num_workers=1))
    return domain, source.world(source.generator())


def hit_rate(domain: Domain, scores: np.ndarray) -> float:
    """HR@10 of [U, N] scores on test: seen items masked, ties against the scores."""
    hits = 0
    for row, (history, valid, test) in enumerate(domain.eval.select("history", "valid", "test").iter_rows()):
        own = scores[row].astype(float)
        target = own[test]
        own[[*history, valid]] = -np.inf
        own[test] = -np.inf
        hits += (own >= target).sum() < 10
    return hits / domain.num_users


@pytest.mark.parametrize("variant", ["source", "target"])
def test_who_knows_style_and_kind_clearly_beats_who_knows_one(tmp_path: Path, variant: str) -> None:
    domain, world = drawn(tmp_path, variant)
    last = domain.eval["valid"].to_numpy()

    def chance(of: np.ndarray, step: int, number: int) -> np.ndarray:
        follows = of[None, :] == (of[last][:, None] + step) % number
        return follows * (1 - WANDERING) + WANDERING / number

    style = chance(world.style, STYLE_STEP, NUM_STYLES)
    kind = chance(world.kind, KIND_STEP, NUM_KINDS)
    both = hit_rate(domain, style * kind * world.appeal)
    alone = [hit_rate(domain, style * world.appeal), hit_rate(domain, kind * world.appeal)]
    popularity = hit_rate(
        domain, np.broadcast_to(domain.items["train_count"].to_numpy(), (domain.num_users, domain.num_items))
    )
    assert both > 0.4
    assert both > 2.5 * max(alone)
    assert min(alone) > 2 * popularity
    assert popularity < 0.05


def test_source_and_target_share_no_item_and_not_all_words(tmp_path: Path) -> None:
    source, _ = drawn(tmp_path, "source", num_users=60, items_per_cell=2)
    target, _ = drawn(tmp_path, "target", num_users=60, items_per_cell=2)
    assert not set(source.items["item_id"]) & set(target.items["item_id"])
    words = [set(" ".join(d.titles()).lower().replace(",", " ").split()) for d in (source, target)]
    names = {word for kind in KINDS for word in kind}
    assert words[0] & words[1] & names
    assert words[0] - words[1]
    assert words[1] - words[0]


def test_the_title_tells_the_kind_and_not_the_style(tmp_path: Path) -> None:
    domain, world = drawn(tmp_path, "source")
    named = [
        next(k for k, names in enumerate(KINDS) if any(name in title for name in names)) for title in domain.titles()
    ]
    assert named == world.kind.tolist()
    # of independent style and kind every cell holds the same number of items
    cells = np.bincount(world.style * NUM_KINDS + world.kind, minlength=NUM_STYLES * NUM_KINDS)
    assert (cells == Synthetic().items_per_cell).all()


def test_the_category_of_a_drawn_item_is_its_kind(tmp_path: Path) -> None:
    source = Synthetic(num_users=20, items_per_cell=1)
    items = source.read(tmp_path, with_images=False).items.collect()
    kinds = source.world(source.generator()).kind.tolist()
    assert items["categories"].to_list() == [[KINDS[kind][0]] for kind in kinds]
    assert [any(name in title for name in KINDS[kind]) for title, kind in zip(items["title"], kinds)] == [True] * 100


@pytest.mark.parametrize("variant", ["source", "target"])
def test_the_picture_tells_the_style_whatever_the_colours(variant: str) -> None:
    """Nearest mean of a colour-free description: edges of small thumbnails, without any learning."""
    look, rng = LOOKS[variant], np.random.default_rng(0)

    def describe(style: int) -> np.ndarray:
        grey = np.asarray(
            draw_picture(style, look, rng).convert("L").resize((64, 64), Image.Resampling.BILINEAR), float
        )
        spectrum = np.abs(np.fft.fftshift(np.fft.fft2(grey - grey.mean())))[16:48, 16:48]
        return spectrum / np.linalg.norm(spectrum)

    means = np.array([np.mean([describe(style) for _ in range(20)], axis=0) for style in range(NUM_STYLES)])
    guesses = [
        (style, int(np.einsum("shw,hw->s", means, describe(style)).argmax()))
        for style in range(NUM_STYLES)
        for _ in range(10)
    ]
    assert np.mean([style == guess for style, guess in guesses]) > 0.8


def test_drawing_again_gives_the_same_files_and_root_keeps_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        source = Synthetic("target", num_users=20, items_per_cell=1, root=tmp_path / name)
        source.read(tmp_path, with_images=True)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 100 + 2
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    with pytest.raises(UserError, match="not empty"):
        Synthetic(root=tmp_path / "a").read(tmp_path, with_images=True)
