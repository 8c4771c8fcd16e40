"""Where samples come from: Parquet, folders of images, the hub; and what is wrong with them."""

import sys
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latewood.errors import RequestError, WorkError
from latewood.tasks.data.locate import find_folder, open_splits
from latewood.tasks.data.parquet import ParquetSource, parquet_files
from latewood.tasks.data.sources import CHUNK, FolderSource, HubSource

pytestmark = pytest.mark.usefixtures("clean_places")


def opened(folder, splits=("train", "test"), feature="Image", columns=("img", "image"), **more):
    return open_splits(
        "some_task",
        splits,
        folder=None if folder is None else str(folder),
        hub=more.pop("hub", None),
        names=("first", "second"),
        hub_name="owner/name",
        columns=columns,
        feature=feature,
    )


def rows(source):
    return [row for chunk in source.chunks() for row in chunk]


class TestParquet:
    def test_rows_of_several_files_in_order(self, tmp_path, data_kit):
        for part in range(2):
            data_kit.parquet(
                tmp_path / f"train-0000{part}-of-00002.parquet",
                [f"{part}{k}".encode() for k in range(5)],
                range(5),
                row_group_size=2,
            )
        source = ParquetSource(parquet_files(tmp_path, "train"), columns=("img",))
        assert len(source) == 10
        found = rows(source)
        assert [row.content.decode() for row in found] == [
            f"{p}{k}" for p in "01" for k in range(5)
        ]
        assert [row.label for row in found] == [*range(5)] * 2
        assert found[7].origin.endswith("train-00001-of-00002.parquet, row 2 (2.x)")

    def test_read_in_chunks(self, tmp_path, data_kit):
        path = data_kit.parquet(tmp_path / "t.parquet", [b"x"] * (CHUNK + 3), [0] * (CHUNK + 3))
        source = ParquetSource([path], columns=("img",))
        assert [len(chunk) for chunk in source.chunks()] == [CHUNK, 3]
        assert rows(source)[CHUNK + 2].origin.endswith(f"row {CHUNK + 2} ({CHUNK + 2}.x)")

    def test_plain_bytes_do_as_well(self, tmp_path):
        table = pa.table({"image": pa.array([b"a", b"b"]), "label": pa.array([1, 0], pa.int32())})
        pq.write_table(table, tmp_path / "train.parquet")
        (source,) = opened(tmp_path, ["train"])
        assert [(row.content, row.label) for row in rows(source)] == [(b"a", 1), (b"b", 0)]

    def test_one_folder_below_as_in_a_copy_of_the_hub(self, tmp_path, data_kit):
        path = data_kit.parquet(
            tmp_path / "plain_text" / "train-00000-of-00001.parquet", [b"a"], [0]
        )
        assert parquet_files(tmp_path, "train") == [path]
        data_kit.parquet(tmp_path / "other" / "train-00000-of-00001.parquet", [b"a"], [0])
        with pytest.raises(RequestError, match="in other, plain_text; name one"):
            parquet_files(tmp_path, "train")

    def test_a_missing_part(self, tmp_path, data_kit):
        data_kit.parquet(tmp_path / "train-00001-of-00003.parquet", [b"a"], [0])
        with pytest.raises(RequestError, match="has 1 of the 3 parts of the split 'train'"):
            opened(tmp_path, ["train"])

    @pytest.mark.parametrize("content", [b"", b"PAR1 but no more", b"\0" * 500])
    def test_no_parquet_at_all(self, tmp_path, content):
        (tmp_path / "train.parquet").write_bytes(content)
        with pytest.raises(WorkError, match=r"train\.parquet: cannot be read as a Parquet file"):
            opened(tmp_path, ["train"])

    def test_damage_in_the_middle_names_file_and_rows(self, tmp_path, data_kit):
        n = 3 * CHUNK
        contents = [bytes([k % 251]) * 40 for k in range(n)]
        path = data_kit.parquet(tmp_path / "train.parquet", contents, [0] * n, row_group_size=CHUNK)
        start = pq.ParquetFile(path).metadata.row_group(1).column(0).dictionary_page_offset
        content = bytearray(path.read_bytes())
        content[start : start + 40] = b"\xff" * 40
        path.write_bytes(content)
        source = ParquetSource([path], columns=("img",))
        with pytest.raises(
            WorkError,
            match=rf"train\.parquet: is damaged between row {CHUNK} and row {2 * CHUNK - 1}",
        ):
            rows(source)

    def test_no_rows(self, tmp_path, data_kit):
        data_kit.parquet(tmp_path / "train.parquet", [], [])
        with pytest.raises(RequestError, match=r"train\.parquet: no rows"):
            opened(tmp_path, ["train"])

    def test_wrong_columns_list_those_that_are_there(self, tmp_path, data_kit):
        data_kit.parquet(tmp_path / "train.parquet", [b"a"], [0], column="picture")
        with pytest.raises(
            RequestError, match=r"no column 'img' or 'image'; its columns are 'picture', 'label'"
        ):
            opened(tmp_path, ["train"])

    def test_no_label_column(self, tmp_path, data_kit):
        data_kit.parquet(tmp_path / "train.parquet", [b"a"], [0], label="class")
        with pytest.raises(RequestError, match="no column 'label'"):
            opened(tmp_path, ["train"])

    @pytest.mark.parametrize(
        ("column", "values", "said"),
        [
            ("img", pa.array(["text"]), "column 'img' is string; expected struct"),
            ("img", pa.array([{"path": "x"}]), "column 'img' is struct<path: string>; expected"),
            ("label", pa.array(["cat"]), "column 'label' is string; expected integers"),
        ],
    )
    def test_wrong_types(self, tmp_path, column, values, said):
        table = {"img": pa.array([b"a"]), "label": pa.array([0])} | {column: values}
        pq.write_table(pa.table(table), tmp_path / "train.parquet")
        with pytest.raises(RequestError, match=said):
            opened(tmp_path, ["train"])

    def test_a_missing_label_and_missing_bytes_are_named(self, tmp_path, data_kit):
        data_kit.parquet(tmp_path / "train.parquet", [b"a", b"b"], [0, None])
        with pytest.raises(RequestError, match=r"train\.parquet, row 1 \(1\.x\): has no label"):
            rows(opened(tmp_path, ["train"])[0])
        data_kit.parquet(tmp_path / "train.parquet", [b"a", None], [0, 0])
        with pytest.raises(WorkError, match=r"train\.parquet, row 1: has no bytes"):
            rows(opened(tmp_path, ["train"])[0])

    def test_fingerprint_follows_the_content(self, tmp_path, data_kit):
        def fingerprint(contents, name="train.parquet"):
            path = data_kit.parquet(tmp_path / name, contents, [0])
            return ParquetSource([path], columns=("img",)).fingerprint()

        assert fingerprint([b"a"]) == fingerprint([b"a"])
        assert fingerprint([b"a"]) != fingerprint([b"b"])
        assert fingerprint([b"a"]) != fingerprint([b"a"], "test.parquet")


class TestFolder:
    @pytest.fixture
    def images(self, tmp_path, data_kit):
        for split in ("train", "test"):
            for label in range(11):
                home = tmp_path / "images" / split / str(label)
                home.mkdir(parents=True)
                (home / "one.png").write_bytes(data_kit.image(data_kit.pictures(1)[0]))
        (tmp_path / "images" / "train" / "0" / ".hidden").write_text("not a sample")
        return tmp_path / "images"

    def test_classes_are_numbered_by_value(self, images):
        train, test = opened(images)
        assert [row.label for row in rows(train)] == [*range(11)]
        assert rows(test)[10].origin == "test/10/one.png"
        assert len(train) == len(test) == 11

    def test_classes_by_name_come_from_the_training_images(self, tmp_path, data_kit):
        for place in ("train/dog", "train/cat", "test/dog"):
            (tmp_path / place).mkdir(parents=True)
            (tmp_path / place / "a.png").write_bytes(b"x")
        train, test = opened(tmp_path)
        assert [row.label for row in rows(train)] == [0, 1]
        assert [row.label for row in rows(test)] == [1]
        (tmp_path / "test" / "emu").mkdir()
        with pytest.raises(RequestError, match="class 'emu', which the training images do not"):
            opened(tmp_path)

    def test_a_file_that_is_no_image(self, images):
        (images / "train" / "3" / "notes.txt").write_text("x")
        with pytest.raises(RequestError, match=r"3/notes\.txt: is no image by its name"):
            opened(images)

    def test_no_classes_and_no_images(self, tmp_path):
        (tmp_path / "train").mkdir()
        with pytest.raises(RequestError, match="has no folders; expected one folder per class"):
            FolderSource(tmp_path, "train")
        (tmp_path / "train" / "cat").mkdir()
        with pytest.raises(RequestError, match="has no images"):
            FolderSource(tmp_path, "train")

    def test_fingerprint_follows_the_content(self, images):
        before = FolderSource(images, "train").fingerprint()
        assert FolderSource(images, "train").fingerprint() == before
        (images / "train" / "3" / "one.png").write_bytes(b"other")
        assert FolderSource(images, "train").fingerprint() != before


class TestFinding:
    def test_the_named_folder_first(self, tmp_path, monkeypatch):
        monkeypatch.setenv("LATEWOOD_DATA", str(tmp_path / "all"))
        for name in ("mine", "all/second", "data/first"):
            (tmp_path / name).mkdir(parents=True)

        def find(folder):
            return find_folder("t", folder, names=("first", "second"), layout="x")

        assert find(str(tmp_path / "mine")) == tmp_path / "mine"
        assert find(None) == tmp_path / "all" / "second"
        monkeypatch.delenv("LATEWOOD_DATA")
        assert find(None) == tmp_path / "data" / "first"

    def test_a_named_folder_that_is_missing(self):
        with pytest.raises(
            RequestError, match=r"^folder: got 'nowhere'; expected an existing folder"
        ):
            opened("nowhere")

    def test_nothing_found_says_what_where_and_how(self, tmp_path, monkeypatch):
        with pytest.raises(RequestError) as caught:
            opened(None)
        message = str(caught.value)
        for part in (
            "'some_task'",
            str(tmp_path / "data" / "first"),
            str(tmp_path / "data" / "second"),
            "LATEWOOD_DATA is not set",
            "train-*.parquet and test-*.parquet",
            "img or image, and label",
            "<class>",
            "hub = 'owner/name'",
            "latewood[hub]",
        ):
            assert part in message
        monkeypatch.setenv("LATEWOOD_DATA", str(tmp_path / "all"))
        with pytest.raises(RequestError, match=str(tmp_path / "all" / "first")):
            opened(None)

    def test_a_missing_split_says_what_is_there(self, picture_folder):
        (picture_folder / "test-00000-of-00001.parquet").unlink()
        with pytest.raises(
            RequestError, match=r"no split 'test'; expected .*; found train-00000-of-00001"
        ):
            opened(picture_folder)
        assert len(opened(picture_folder, ["train"])) == 1

    def test_folder_and_hub_at_once(self, picture_folder):
        with pytest.raises(RequestError, match=r"^hub: got 'a/b'; expected nothing"):
            opened(picture_folder, hub="a/b")


class FakeHubData:
    """As much of a ``datasets.Dataset`` as is used."""

    def __init__(self, columns, kept=None):
        self.columns = columns
        self.column_names = list(columns)
        self._fingerprint = "f1"

    def select_columns(self, names):
        return FakeHubData({name: self.columns[name] for name in names})

    def cast_column(self, name, feature):
        assert feature == ("Image", False)
        return self

    def __len__(self):
        return len(self.columns["label"])

    def iter(self, batch_size):
        for start in range(0, len(self), batch_size):
            yield {name: v[start : start + batch_size] for name, v in self.columns.items()}


class TestHub:
    @pytest.fixture
    def hub(self, monkeypatch, tmp_path):
        (tmp_path / "local.png").write_bytes(b"from a path")
        columns = {
            "extra": [1, 2],
            "img": [{"bytes": b"a", "path": None}, {"bytes": None, "path": tmp_path / "local.png"}],
            "label": [3, 4],
        }
        fake = types.ModuleType("datasets")
        fake.Image = lambda decode: ("Image", decode)
        fake.columns = columns

        def load_dataset(repository, split):
            if repository != "owner/name":
                raise ConnectionError("offline\nlong story")
            return FakeHubData(fake.columns)

        fake.load_dataset = load_dataset
        monkeypatch.setitem(sys.modules, "datasets", fake)
        return fake

    def test_encoded_rows(self, hub):
        (source,) = opened(None, ["train"], hub="owner/name")
        assert len(source) == 2
        assert [(row.content, row.label) for row in rows(source)] == [
            (b"a", 3),
            (b"from a path", 4),
        ]
        assert rows(source)[1].origin == "owner/name (train), row 1"
        assert source.fingerprint() == opened(None, ["train"], hub="owner/name")[0].fingerprint()

    def test_missing_columns_labels_and_rows(self, hub):
        hub.columns = {"picture": [], "label": []}
        with pytest.raises(RequestError, match="no column 'img' or 'image'"):
            opened(None, ["train"], hub="owner/name")
        hub.columns = {"img": [{"bytes": b"a", "path": None}], "label": [None]}
        with pytest.raises(RequestError, match="row 0: has no label"):
            rows(opened(None, ["train"], hub="owner/name")[0])
        hub.columns = {"img": [], "label": []}
        with pytest.raises(RequestError, match="has no rows"):
            opened(None, ["train"], hub="owner/name")

    def test_a_failure_to_load_is_one_line(self, hub):
        with pytest.raises(
            WorkError, match=r"'other/name', split 'test'.*ConnectionError: offline$"
        ):
            HubSource("other/name", "test", columns=("img",), feature="Image")

    def test_without_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(RequestError, match=r"pip install 'latewood\[hub\]'"):
            opened(None, ["train"], hub="owner/name")
