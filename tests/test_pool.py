"""Every kind of pool is listed alike, streamed, and read back byte for byte."""

import io
import itertools
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from conftest import S3Server
from factories import write_pool

from raygen import storage
from raygen.data.pool import Normal, index_pool, read_normals
from raygen.errors import UserError


def put_parquet(uri: str, table: pa.Table, **options) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    storage.put(uri, buffer.getvalue())


def contents(normals: list[Normal]) -> list[bytes | None]:
    return [raw.data for raw in read_normals([n.uri for n in normals], [n.etag for n in normals], 4)]


def test_a_folder_tells_products(folder_uri: str) -> None:
    uris = write_pool(folder_uri, 3)
    storage.put(storage.join(folder_uri, "brushed_metal", "deeper", "x.JPEG"), b"x")
    storage.put(storage.join(folder_uri, "brushed_metal", "notes.txt"), b"no image")
    normals = list(index_pool(folder_uri))
    assert {n.uri for n in normals} == {*uris, storage.join(folder_uri, "brushed_metal/deeper/x.JPEG")}
    assert all(f"/{n.product}/" in n.uri for n in normals)
    assert all(n.size > 0 and n.etag for n in normals)
    assert contents(normals) == [storage.read(n.uri) for n in normals]


def test_a_flat_folder_needs_a_product(tmp_path) -> None:
    storage.put(str(tmp_path / "a.png"), b"x")
    with pytest.raises(UserError, match=r"a\.png stands in no product folder.*set product="):
        list(index_pool(str(tmp_path)))
    [normal] = index_pool(str(tmp_path), product="steel")
    assert normal.product == "steel"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_manifest_names_uris(folder_uri: str, kind: str) -> None:
    uris = write_pool(storage.join(folder_uri, "images"), 2)
    relative = [uri.removeprefix(folder_uri + "/") for uri in uris]
    named = [*uris[:3], *relative[3:]]  # absolute, or relative to the manifest
    manifest = storage.join(folder_uri, f"pool.{kind}")
    if kind == "csv":
        storage.put(manifest, ("uri,product\n" + "".join(f"{uri},7\n" for uri in named)).encode())
    else:
        put_parquet(manifest, pa.table({"uri": named, "product": ["7"] * len(named)}))
    normals = list(index_pool(manifest))
    assert [(n.uri, n.product) for n in normals] == [(uri, "7") for uri in uris]
    assert contents(normals) == [storage.read(uri) for uri in uris]


@pytest.mark.parametrize("as_struct", [False, True])
def test_images_inside_parquet(folder_uri: str, as_struct: bool) -> None:
    images = [f"image {i}".encode() for i in range(10)]
    column = [{"bytes": image, "path": None} for image in images] if as_struct else images
    for part in range(2):
        half = slice(5 * part, 5 * part + 5)
        table = pa.table({"image": column[half], "product": ["a", "a", "b", "b", "b"]})
        put_parquet(storage.join(folder_uri, f"part-{part}.parquet"), table, row_group_size=2)
    normals = list(index_pool(folder_uri))
    assert [n.product for n in normals] == ["a", "a", "b", "b", "b"] * 2
    assert normals[7].uri.endswith("part-1.parquet#2")
    assert contents(normals) == images
    some = [normals[8], normals[1], normals[2]]  # in any order
    assert contents(some) == [images[8], images[1], images[2]]


def test_an_image_that_changed_or_went_is_an_error_of_its_own(folder_uri: str) -> None:
    write_pool(folder_uri, 1)
    table = pa.table({"image": [b"x"], "product": ["a"]})
    put_parquet(storage.join(folder_uri, "zz.parquet"), table)
    normals = list(index_pool(folder_uri))
    storage.delete(normals[0].uri)
    storage.put(normals[1].uri, b"another")
    put_parquet(storage.join(folder_uri, "zz.parquet"), pa.concat_tables([table, table]))
    raws = list(read_normals([n.uri for n in normals], [n.etag for n in normals], 4))
    assert [raw.error.reason if raw.error else None for raw in raws] == [
        "missing",
        "changed",
        None,
        "changed",
    ]


def test_listing_is_a_stream(s3_uri: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """No request per file, and none for the pages that nobody asks for."""
    write_pool(s3_uri, 4)
    before = s3_server.requests()
    assert len(list(index_pool(s3_uri))) == 12
    # The pool, its three products, and its folders for what it is: so few for a pool of millions, too.
    assert s3_server.requests() - before == {"LIST": 5}
    endless = (storage.Entry(f"pool/a/{i}.png", 1, "e") for i in itertools.count())
    monkeypatch.setattr(storage, "list_files", lambda uri: endless)
    assert len(list(itertools.islice(index_pool("pool"), 5))) == 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda uri: uri, "no images there"),
        (lambda uri: f"{uri}/none.csv", "no such file"),
        (lambda uri: f"{uri}/none.parquet", "no such file"),
    ],
)
def test_a_pool_that_is_not_there(folder_uri: str, make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(index_pool(make(folder_uri)))


@pytest.mark.parametrize("spelling", ["{}/", "{}/.", "file://{}", "{}//"])
def test_a_pool_may_be_spelt_in_many_ways(tmp_path, spelling: str) -> None:
    uris = write_pool(str(tmp_path), 1)
    normals = list(index_pool(spelling.format(tmp_path)))
    assert [(n.uri, n.product) for n in normals] == [(uri, uri.split("/")[-2]) for uri in sorted(uris)]


def test_a_relative_pool(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pool(str(tmp_path / "pool"), 1)
    monkeypatch.chdir(tmp_path)
    for spelling in ("pool", "./pool", "pool/", "../" + tmp_path.name + "/pool"):
        assert {n.product for n in index_pool(spelling)} == {
            "brushed_metal",
            "grained_leather",
            "woven_fabric",
        }


def test_what_storage_refuses_is_one_normals_error(tmp_path) -> None:
    """Not the whole run's: a plan is frozen, and a resume would meet it again."""
    uris = write_pool(str(tmp_path), 1)
    put_parquet(str(tmp_path / "zz.parquet"), pa.table({"image": ["text"], "product": ["a"]}))
    normals = list(index_pool(str(tmp_path)))
    storage.delete(uris[0])
    (tmp_path / uris[0]).mkdir()  # a folder where a file was
    raws = list(read_normals([n.uri for n in normals], [n.etag for n in normals], 4))
    assert [raw.error.reason if raw.error else None for raw in raws] == [
        "unreadable",
        None,
        None,
        "unreadable",
    ]


def test_a_manifest_may_tell_etags(folder_uri: str) -> None:
    [uri, *_] = write_pool(storage.join(folder_uri, "images"), 1)
    manifest = storage.join(folder_uri, "pool.csv")
    storage.put(manifest, f"uri,product,etag\n{uri},a,{storage.stat(uri).etag}\n".encode())
    [normal] = index_pool(manifest)
    assert contents([normal]) == [storage.read(uri)]
    storage.put(uri, b"another")
    [raw] = read_normals([normal.uri], [normal.etag], 1)
    assert raw.error is not None
    assert raw.error.reason == "changed"


def test_storage_that_does_not_answer_is_not_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> bytes:
        raise storage.StorageUnavailableError("s3://b/a.png: connection refused")

    monkeypatch.setattr(storage, "read", away)
    with pytest.raises(storage.StorageUnavailableError):
        list(read_normals(["s3://b/a.png"], [None], 1))


def test_manifests_that_are_wrong(tmp_path) -> None:
    pool = str(tmp_path / "pool.csv")
    storage.put(pool, b"file,product\na.png,x\n")
    with pytest.raises(UserError, match="needs the columns uri and product"):
        list(index_pool(pool))
    storage.put(pool, b"uri,product\na.png,x\nb.png,x\na.png,x\n")
    with pytest.raises(UserError, match=r"a\.png stands in it twice"):
        list(index_pool(pool))
    storage.put(pool, b"uri,product\na.png,x\n./a.png,x\n")  # one place, spelt twice
    with pytest.raises(UserError, match=r"a\.png stands in it twice"):
        list(index_pool(pool))
    storage.put(pool, b"uri,product\na.png,\n")
    with pytest.raises(UserError, match="a row without a product"):
        list(index_pool(pool))
    for uris, message in (
        ([1, 2], "its uri column holds int64, not text"),
        ([["a.png"]], "its uri column holds list<.*>, not text"),
        ([b"a.png"], "its uri column holds binary, not text"),
        (["a\0b.png"], r"'a\\x00b.png' holds signs that no file's name has"),
        (["b.parquet#x"], "'b.parquet#x' names no row; write file.parquet#17"),
    ):
        put_parquet(str(tmp_path / "m.parquet"), pa.table({"uri": uris, "product": ["p"] * len(uris)}))
        with pytest.raises(UserError, match=message):
            list(index_pool(str(tmp_path / "m.parquet")))
    storage.put(pool, b"uri,product,uri\na.png,x,b.png\n")
    with pytest.raises(UserError, match="has 2 columns uri; keep one"):
        list(index_pool(pool))
    for column in ({"product": [["p"]]}, {"product": ["p"], "etag": [0.5]}):
        put_parquet(str(tmp_path / "m.parquet"), pa.table({"uri": ["a.png"], **column}))
        with pytest.raises(UserError, match=r"its (product|etag) column holds .*, not text"):
            list(index_pool(str(tmp_path / "m.parquet")))


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_repeated_rows_of_a_manifest_are_found_however_far_apart(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows come part by part, and only a hash of each is kept: the same hash is no proof."""
    uris = [f"s3://bucket/{number:06}.png" for number in range(200_000)]
    manifest = str(tmp_path / f"manifest.{kind}")

    def write(uris: list[str]) -> None:
        table = pa.table({"uri": uris, "product": ["tile"] * len(uris)})
        if kind == "csv":
            pyarrow.csv.write_csv(table, manifest)
        else:
            pq.write_table(table, manifest)

    write([*uris, uris[3]])
    with pytest.raises(UserError, match=r"bucket/000003\.png stands in it twice"):
        list(index_pool(manifest))
    write(uris)
    assert [normal.uri for normal in index_pool(manifest)] == uris
    monkeypatch.setattr("raygen.data.pool.hash", lambda place: len(place), raising=False)  # all are alike
    assert len(list(index_pool(manifest))) == len(uris)


def test_a_manifest_of_categories_and_numbers(tmp_path: Path) -> None:
    """As data frames write them."""
    columns = {
        "uri": pa.array(["a.png", "b.png"]).dictionary_encode(),
        "product": pa.array([7, 7], pa.int16()),
        "etag": pa.array(["x", None]).dictionary_encode(),
    }
    manifest = str(tmp_path / "pool.parquet")
    put_parquet(manifest, pa.table(columns))
    normals = list(index_pool(manifest))
    assert [(normal.product, normal.etag) for normal in normals] == [("7", "x"), ("7", None)]
    assert normals[1].uri == str(tmp_path / "b.png")
    put_parquet(str(tmp_path / "folder" / "m.parquet"), pa.table({"uri": ["a.png"], "product": ["x"]}))
    with pytest.raises(UserError, match="name a manifest itself as the pool"):
        list(index_pool(str(tmp_path / "folder")))
    storage.put(str(tmp_path / "x.parquet"), b"not parquet")
    with pytest.raises(UserError, match="not a Parquet file"):
        list(index_pool(str(tmp_path / "x.parquet")))
    put_parquet(str(tmp_path / "x.parquet"), pa.table({"pixels": [1]}))
    with pytest.raises(UserError, match="no `image` column among"):
        list(index_pool(str(tmp_path / "x.parquet")))


@pytest.mark.parametrize(
    "spelling", ["{}/own/../a.png", "own/../a.png", "./a.png", "file://{}/a.png", "{}//a.png"]
)
def test_a_normal_has_one_spelling(tmp_path, spelling: str) -> None:
    storage.put(str(tmp_path / "a.png"), b"x")
    storage.put(
        str(tmp_path / "pool.csv"),
        f"uri,product\n{tmp_path}/a.png,p\n{spelling},p\n".format(tmp_path).encode(),
    )
    with pytest.raises(UserError, match="stands in it twice"):
        list(index_pool(str(tmp_path / "pool.csv")))


def test_the_folder_one_stands_in_is_a_pool(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.put(str(tmp_path / "steel/a.png"), b"x")
    storage.put(str(tmp_path / "a.b/c.png"), b"x")
    monkeypatch.chdir(tmp_path)
    assert [(normal.uri, normal.product) for normal in index_pool(".")] == [
        ("a.b/c.png", "a.b"),
        ("steel/a.png", "steel"),
    ]


def test_names_that_look_like_rows_of_parquet(tmp_path) -> None:
    storage.put(str(tmp_path / "p/x.parquet#3.png"), b"x")
    [normal] = index_pool(str(tmp_path))
    assert contents([normal]) == [b"x"]


@pytest.mark.parametrize(
    "product", ["../outside", "a/../../outside", "/outside", ".", "..", ".hidden", "a\\b", "a\tb", "x" * 201]
)
@pytest.mark.parametrize("kind", ["manifest", "column", "recipe"])
def test_a_product_is_a_name_and_no_path(tmp_path, product: str, kind: str) -> None:
    if kind == "manifest":
        put_parquet(str(tmp_path / "pool.parquet"), pa.table({"uri": ["a.png"], "product": [product]}))
    elif kind == "column":
        put_parquet(str(tmp_path / "pool.parquet"), pa.table({"image": [b"x"], "product": [product]}))
    else:
        put_parquet(str(tmp_path / "pool.parquet"), pa.table({"image": [b"x"]}))
    with pytest.raises(UserError, match="is no name of a product"):
        list(index_pool(str(tmp_path / "pool.parquet"), product if kind == "recipe" else None))


# ------------------------------------------------------------------------------------------ defect sets as pools

SETS_AS_POOLS = {
    "our layout": (
        ["steel/normal/0.png", "steel/normal/1.png", "steel/scratch/0.png", "steel/scratch/0_mask.png"],
        {"steel/normal/0.png": "steel", "steel/normal/1.png": "steel"},
    ),
    "MVTec AD": (
        [
            "nut/train/good/0.png", "nut/test/good/0.png", "nut/test/crack/0.png",
            "nut/ground_truth/crack/0_mask.png", "nut/license.txt",
        ],
        {"nut/train/good/0.png": "nut"},
    ),
    "one category": (["train/good/0.png", "test/good/0.png", "test/crack/0.png"], {"train/good/0.png": "set"}),
    "VisA": (
        ["nut/Data/Images/Normal/0.JPG", "nut/Data/Images/Anomaly/0.JPG", "nut/Data/Masks/Anomaly/0.png"],
        {"nut/Data/Images/Normal/0.JPG": "nut"},
    ),
    "magnetic tile": (
        ["MT_Free/Imgs/1.jpg", "MT_Free/Imgs/1.png", "MT_Crack/Imgs/2.jpg", "MT_Crack/Imgs/2.png"],
        {"MT_Free/Imgs/1.jpg": "set"},
    ),
    "splits in a table": (
        ["a/ok/0.png", "a/ok/1.png", "a/cut/0.png"],
        {"a/ok/0.png": "a"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS_AS_POOLS)
def test_of_a_defect_set_the_normals_are_the_pool_and_none_held_out(folder_uri: str, name: str) -> None:
    files, normals = SETS_AS_POOLS[name]
    uri = storage.join(folder_uri, "set")
    for file in files:
        storage.put(storage.join(uri, file), file.encode())
    if name == "splits in a table":
        rows = "path,split\na/ok/0,train\na/ok/1,test\na/cut/0,train\n"
        storage.put(storage.join(uri, "metadata.csv"), rows.encode())
    said: list[str] = []
    found = {
        normal.uri.removeprefix(f"{uri}/"): normal.product for normal in index_pool(uri, say=said.append)
    }
    assert found == normals
    [line] = said
    assert f"{len(normals)} normals are taken" in line
    assert "left alone" in line
    assert {normal.product for normal in index_pool(uri, "other")} == {"other"}


def test_plain_pools_stay_as_they_are(tmp_path) -> None:
    """Deeper folders, also those called good, are no defect set as long as nothing else lies beside them."""
    for name in ("a/good/0.png", "b/good/line 2/0.png", "c/0.png"):
        storage.put(str(tmp_path / name), b"x")
    said: list[str] = []
    assert [normal.product for normal in index_pool(str(tmp_path), say=said.append)] == ["a", "b", "c"]
    assert not said


def test_masks_in_a_pool_are_not_learned_as_normals(tmp_path) -> None:
    for name in ("a/0.png", "a/0_mask.png"):
        storage.put(str(tmp_path / name), b"x")
    with pytest.raises(UserError, match=r"a/0_mask\.png looks like a mask, .*name the normals in a manifest"):
        list(index_pool(str(tmp_path)))
