"""A file is written whole or not at all, by however many at once."""

import threading

import pytest

from unmask.store.files import replace_text


def test_readers_find_what_one_of_several_writers_wrote(tmp_path):
    path, texts = tmp_path / "records.jsonl", [str(number) * 20_000 for number in range(4)]
    wrong, done = [], threading.Event()
    replace_text(path, texts[0])

    def write(text):
        try:
            for _ in range(40):
                replace_text(path, text)
        except OSError as error:
            wrong.append(error)

    def read():
        while not done.is_set():
            if path.read_text() not in texts:
                wrong.append("a part")

    writers, reader = [threading.Thread(target=write, args=(text,)) for text in texts], threading.Thread(target=read)
    for thread in (reader, *writers):
        thread.start()
    for writer in writers:
        writer.join()
    done.set()
    reader.join()
    assert wrong == []
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    replace_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        replace_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
