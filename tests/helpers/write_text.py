"""Small files of labelled texts in every format that the text classification example reads."""

import json

ROWS = [(f"{word} number {i}", word) for word, count in (("cat", 10), ("dog", 5)) for i in range(count)]


def write_json(root, **halves):
    content = {"train": [list(row) for row in ROWS], "val": [], "test": [["a dog", "dog"]], "oos_test": [["?", "oos"]]}
    (root / "data.json").write_text(json.dumps(content | halves))
    return root / "data.json"


def write_tsv(path, rows=ROWS):
    path.write_text("".join(f"{label}\t{text}\n" for text, label in rows), encoding="utf-8")
    return path


def write_csv(path, rows=ROWS, header="id,label,text"):
    path.write_text(f"{header}\n" + "".join(f'{i},{row[1]},"{row[0]}, yes"\n' for i, row in enumerate(rows)))
    return path


def write_classes(root, encoding="utf-8"):
    (root / "README.txt").write_text("not a class")
    (root / "reviews.pos").write_bytes("très bien\n\nsuper\ngood\r\n".encode(encoding))
    (root / "reviews.neg").write_bytes("mauvais\nbad\n".encode(encoding))
