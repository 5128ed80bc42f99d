"""cil show: the timeline page of a stream of tasks."""

from __future__ import annotations

IDS = "stream.ids=[shapes,shapes-present]"  # made, so nothing is read


def test_a_stream_of_tasks_is_shown_as_a_page_with_its_training_images(cil, tmp_path):
    said = cil("show", "stream=embedded_tasks", IDS, "--out", "page.html", "--count", "3")
    assert said.code == 0 and "page: page.html" in said.out, said.err
    assert "embedded_tasks-2: 2 tasks, 8 classes in all, 800 training images (3, 32, 32)" in said.out
    rows = [line.split()[:7] for line in said.out.splitlines() if line.lstrip()[:1] in ("1", "2")]
    assert rows[0] == ["1", "2004", "shapes", "shape", "multiclass", "4", "400"]
    assert "class order" not in said.out and "experiences" not in said.out
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "shapes-present" in page and "any of 4 labels" in page


def test_options_of_streams_are_refused_for_a_run(cil):
    said = cil("show", "runs/some", "--out", "page.html")
    assert said.code == 2 and "a page of a run is cil report RUN_DIR --html FILE" in said.line


def test_a_page_of_other_streams_is_refused(cil):
    said = cil("show", "stream=split_digits", "--out", "page.html")
    assert said.code == 2 and "a page is of a stream of tasks that tells the task, not of 'digits_b0_inc2'" in said.line
