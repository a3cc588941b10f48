from pathlib import Path

from nas.cost import cost
from nas.searching.provenance import checked_macs, folder_digest
from search_spaces.references import reference


def test_pictures_that_change_are_noticed_and_results_among_them_are_not(tmp_path: Path) -> None:
    for name in ("cats/1.png", "dogs/1.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"picture")
    before = folder_digest(tmp_path)
    (tmp_path / "results" / "study").mkdir(parents=True)
    (tmp_path / "results" / "study" / "study.journal").write_text("{}")
    (tmp_path / "results" / "study" / "report.html").write_text("<p>")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x").write_text("x")
    assert folder_digest(tmp_path) == before
    (tmp_path / "cats" / "2.png").write_bytes(b"another")
    assert folder_digest(tmp_path) != before


def test_multiply_accumulates_are_checked_by_another_counter() -> None:
    network = reference("mobilenet_v3_small_050", 96)
    found = checked_macs(network)
    assert found["network"] == network.id
    assert found["fvcore"] == found["counted"] == cost(network).macs
