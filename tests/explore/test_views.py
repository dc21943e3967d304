"""The parts of the page as HTML."""

import re
from dataclasses import replace

from mmsr_pt.explore import views
from mmsr_pt.explore.exhibit import Exhibit
from mmsr_pt.explore.questions import scores_of
from tests.explore.test_questions import of_counts


def buttons(html: str, action: str) -> list[tuple[int, int]]:
    """Row and place of each button of an action."""
    found = re.findall(rf'data-action="{action}" data-row="(\d+)" data-place="(\d+)"', html)
    return [(int(row), int(place)) for row, place in found]


def test_the_header_says_once_what_models_of_one_domain_were_trained_on(exhibit: Exhibit) -> None:
    html = views.header(exhibit)
    name = exhibit.domain["name"]
    assert f"<b>MMSR, MMSR-T, IDSR</b> trained on {name}." in html
    cold = sum(count < 10 for count in exhibit.items["train_count"])
    assert f"300 items, {cold} of them cold, fewer than 10 times in training." in html


def test_a_history_stands_newest_first_and_says_what_is_read_of_it(exhibit: Exhibit) -> None:
    assert buttons(views.history_page(exhibit, [7, 8, 7, 9], None), "remove") == [(9, 3), (7, 2), (8, 1), (7, 0)]
    # these models read 4
    assert "The models read" not in views.history_page(exhibit, [1, 2, 3, 4], None)
    assert "The models read the newest 4 items of it." in views.history_page(exhibit, [1, 2, 3, 4, 5], None)
    assert views.NO_HISTORY in views.history_page(exhibit, [], None)


def test_what_has_no_picture_shows_its_first_letter_and_titles_are_escaped() -> None:
    bare = of_counts([30, 5], ["<b>Hat</b>", "Scarf"])
    html = views.catalogue_page(bare, [0, 1])
    assert "<img" not in html
    assert '<span class="name">&lt;b&gt;Hat&lt;/b&gt;</span>' in html
    assert html.count('class="mark cold"') == 1
    assert buttons(html, "add") == [(0, 0), (1, 1)]


def test_what_came_next_is_marked_and_its_rank_told() -> None:
    shop = of_counts([30, 20, 15, 12])
    scores = scores_of(shop, [0])
    html = views.recommended_page(shop, scores, [0], 2)
    assert [row for row, _ in buttons(html, "add")] == [1, 2, 3]
    assert re.findall(r'class="tile hit" data-row="(\d)"', html) == ["2"]
    assert "what came next: rank 2" in html
    assert "what came next" not in views.recommended_page(shop, scores, [0], None)


def test_cold_items_are_told_beside_chance() -> None:
    # ranks 1 to 9 are warm, 10 to 20 cold: the last of them tie
    shop = of_counts([40, *range(30, 21, -1), *[1] * 11])
    html = views.cold_page(shop, scores_of(shop, [0]), [0])
    assert "11 of the 20 items that can be recommended are cold" in html
    assert [cell.strip() for cell in re.findall(r"<td>([^<]+)</td>", html)] == [
        *("20", "0.0%", "100.0%", "100.0%"),
        *("10", "50.0%", "100.0%", "100.0%"),
    ]
    warm = of_counts([40, 30])
    assert "No item outside of the history is cold." in views.cold_page(warm, scores_of(warm, [0]), [0])


def test_nothing_is_asked_where_there_is_no_history(exhibit: Exhibit) -> None:
    for html in (views.recommended_page(exhibit, {}, [], None), views.cold_page(exhibit, {}, [])):
        assert views.NO_HISTORY in html
        assert "<section" not in html
    assert "Click the ≈ of any item" in views.similar_page(replace(exhibit, models={}), None)
