"""HeLlO as a whole: what is made, kept, read back, refused."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from rankwise.data import Images
from rankwise.vision import DistilledDataset, Distiller, Views, hello, train_student
from rankwise.vision.distilled import dataset as datasets
from rankwise.vision.distilled.networks import network
from rankwise.vision.distilled.projector import Projector, Seeing, based, numbers
from rankwise.vision.distilled.teachers import Mean
from rankwise.vision.hello import projector_loss
from seeing import PLAIN, Convolutions, Words, coloured

TEXTS = ["a red photo", "a green photo", "the blue one"]
SMALL = {"rank": 2, "head_rank": 2, "ipc": 1, "epochs": 1, "teachers": 1, "batch_size": 8, "crops": 2}


def distiller(base, texts=TEXTS, **changes):
    own = {"seeing": PLAIN} if isinstance(base, nn.Module) else {}
    own |= {"tokenizer": Words()} if hasattr(base, "text_model") else {}
    return Distiller(base, texts, **SMALL | own | changes)


@pytest.fixture(scope="module")
def few(clip):
    return distiller(clip).fit(coloured())


# --- what is made


def test_each_class_has_exactly_so_many_pictures(few, clip):
    assert few.images.shape == (3, 3, 16, 16)
    assert few.images.dtype == torch.uint8
    assert few.classes.tolist() == [0, 1, 2]
    more = distiller(clip, ipc=2, tiles=1).fit(coloured(12))
    assert more.classes.tolist() == [0, 0, 1, 1, 2, 2]
    assert more.ipc == 2


def test_tiles_are_squares_of_their_own_class(few):
    for i in range(3):
        colours = few.images[i].float().mean((1, 2))
        assert int(colours.argmax()) == i
        for quarter in (few.images[i, :, :8, :8], few.images[i, :, 8:, 8:]):
            assert int(quarter.float().mean((1, 2)).argmax()) == i


class Dark(nn.Module):
    """The surer of class 1 the less it sees."""

    def forward(self, x):
        white = 20 * x.mean((1, 2, 3))
        return torch.stack([white, -white, white], 1)


def test_squares_that_show_nothing_are_chosen_only_when_asked_for(clip):
    pixels = np.zeros((24, 16, 16, 3), np.uint8)
    pixels[:, :8, :8] = np.random.default_rng(0).integers(100, 256, (24, 8, 8, 3))
    images = Images.of(pixels, labels=np.arange(24) % 3, label_names=["red", "green", "blue"])
    options = {"teachers": [Dark()], "rank": 0, "head_rank": 0, "tiles": 1, "ipc": 2, "crops": 8}
    shown, published = (distiller(clip, **options | own).fit(images) for own in ({}, {"empty": True}))
    assert published.images[2:4].max() == 0
    assert all(picture.float().std() > 10 for picture in shown.images)
    assert (shown.told["empty"], published.told["empty"]) == (False, True)


def test_without_ranks_labels_are_the_bases_own(clip):
    plain = distiller(clip, rank=0, head_rank=0).fit(coloured())
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(plain.labels(x), Projector(*based(clip, TEXTS, Words()), PLAIN)(x).detach())
    assert plain.nbytes.projector == 0


def test_labels_are_of_the_tensor_that_is_given(few):
    for view, soft in few.stream(2, epoch=3, seed=1):
        assert torch.equal(soft, few.projector(view))
        assert not soft.requires_grad
    picture, label = few[1]
    assert label == 1
    assert torch.equal(picture * 255, few.images[1].float())
    assert len(few) == 3


def test_adapters_learn_the_teachers_logits(clip):
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)).eval()
    with torch.no_grad():
        teacher[2].weight.mul_(10)
    images = coloured(48)
    x = torch.from_numpy(images.store.array).permute(0, 3, 1, 2).float() / 255
    goal = teacher(x)
    options = {"teachers": [teacher], "lr": 0.02, "weight": 0.0, "views": Views(cutmix=0.0)}
    plain = distiller(clip, **options | {"rank": 0, "head_rank": 0}).fit(images)
    learned = distiller(clip, epochs=15, **options).fit(images)
    assert (learned.labels(x) - goal).square().mean() < 0.2 * (plain.labels(x) - goal).square().mean()
    assert teacher[2].weight.grad is None


def test_the_loss_is_of_logits_and_of_the_mean_of_logits():
    f, y, same = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.arange(4)
    one, two = nn.Linear(3, 3), nn.Linear(3, 3)
    taught = Mean([one, two])(f)
    torch.testing.assert_close(taught, (one(f) + two(f)) / 2)
    found = projector_loss(f, taught, y, same, 1.0, weight=0.5)
    by_hand = ((f - taught) ** 2).mean() + 0.5 * nn.functional.cross_entropy(f, y)
    torch.testing.assert_close(found, by_hand)
    assert projector_loss(f, 2 * taught, y, same, 1.0, weight=0.5) != found


def test_a_wrong_seed_changes_and_the_same_one_does_not(clip):
    one, two, other = (distiller(clip, seed=s).fit(coloured()) for s in (0, 0, 1))
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.labels(x), two.labels(x))
    assert not torch.equal(one.images, other.images)
    assert not torch.equal(one.labels(x), other.labels(x))


def test_an_update_changes_pixels_within_their_range_and_not_the_adapters(clip):
    plain, moved = (distiller(clip, update_images=u).fit(coloured()) for u in (False, True))
    assert not torch.equal(plain.images, moved.images)
    assert (plain.images.float() - moved.images.float()).abs().mean() < 40
    for a, b in zip(numbers(plain.projector).values(), numbers(moved.projector).values(), strict=True):
        assert torch.equal(a, b)


def test_a_student_never_sees_a_real_picture(few, monkeypatch):
    monkeypatch.setattr(Images, "__getitem__", None)
    monkeypatch.setattr(Images, "stacked", None)
    seen = []

    class Student(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network("convnet", 3, width=4)

        def forward(self, x):
            seen.append(x)
            return self.inner(x)

    plain = Views(scale=(1, 1), flip=False, cutmix=0)
    train_student(Student(), few, epochs=2, views=plain)
    known = {picture.float().div(255).numpy().tobytes() for picture in few.images}
    assert {x.numpy().tobytes() for batch in seen for x in batch} <= known


def test_an_encoder_alone_works_with_a_head_of_numbers(head, tmp_path):
    encoder = Convolutions().eval()
    made = distiller(encoder, head).fit(coloured())
    made.save(tmp_path / "few")
    with pytest.raises(ValueError, match="base="):
        DistilledDataset.load(tmp_path / "few")
    with pytest.raises(ValueError, match="head="):
        DistilledDataset.load(tmp_path / "few", base=encoder)
    read = DistilledDataset.load(tmp_path / "few", base=encoder, head=head, seeing=PLAIN)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(read.labels(x), made.labels(x))
    with pytest.raises(ValueError, match="other weights"):
        DistilledDataset.load(tmp_path / "few", base=Convolutions(), head=head, seeing=PLAIN)
    with pytest.raises(ValueError, match="takes pictures"):
        DistilledDataset.load(tmp_path / "few", base=encoder, head=head, seeing=Seeing(size=16, mean=(0.5,) * 3))


# --- what is kept


def test_bytes_are_the_files_and_the_head_is_not_in_them(few, clip, tmp_path):
    few.save(tmp_path / "few")
    files = [tmp_path / "few" / name for name in (datasets.TENSORS, datasets.TOLD)]
    held = few.nbytes
    assert held.total == sum(f.stat().st_size for f in files)
    assert held.images == 3 * 3 * 16 * 16
    assert held.projector == 2 * sum(p.numel() for p in numbers(few.projector).values())
    assert held.labels == 3 * 2
    from safetensors.torch import load_file

    kept = load_file(files[0])
    assert {n for n in kept if not n.startswith("projector.")} == {"images", "classes"}
    assert all("lora_" in n for n in kept if n.startswith("projector."))
    _, rows = based(clip, TEXTS, Words())
    assert rows.half().numpy().tobytes() not in files[0].read_bytes()
    read = DistilledDataset.load(tmp_path / "few", base=clip, tokenizer=Words(), seeing=PLAIN)
    assert torch.equal(read.projector.base_model.model.head.base_layer.weight, rows)


def test_what_is_read_back_gives_the_same_labels_views_and_names(few, clip, tmp_path):
    few.save(tmp_path / "few")
    read = DistilledDataset.load(tmp_path / "few", base=clip, tokenizer=Words(), seeing=PLAIN)
    for (a, x), (b, y) in zip(few.stream(2), read.stream(2), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(x, y)
    assert (read.label_names, read.views, read.notes) == (few.label_names, few.views, few.notes)
    assert read.nbytes == few.nbytes


def test_a_base_by_name_is_found_again(tmp_path):
    images = coloured(9)
    made = distiller("clip-cifar10", "a photo of {}", tiles=1).fit(images)
    made.save(tmp_path / "few")
    read = DistilledDataset.load(tmp_path / "few")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(read.labels(x), made.labels(x))
    assert made.told["texts"] == ["a photo of a red", "a photo of a green", "a photo of a blue"]
    assert any("32 x 32" in note for note in made.notes)
    assert not any("leak" in note for note in made.notes)


@pytest.mark.parametrize("damage", ["texts", "weights", "classes", "views", "rank", "cut", "missing"])
def test_a_damaged_folder_is_refused(few, clip, tmp_path, damage):
    folder = tmp_path / "few"
    few.save(folder)
    told = json.loads((folder / datasets.TOLD).read_text())
    if damage == "texts":
        told["texts"][0] = "something else"
    elif damage == "weights":
        told["weights"] = "0" * 64
    elif damage == "classes":
        told["label_names"].append("fourth")
    elif damage == "views":
        told["views"]["scale"] = [2, 3]
    elif damage == "rank":
        told["rank"] = 1
    elif damage == "missing":
        del told["head"]
    else:
        (folder / datasets.TENSORS).write_bytes((folder / datasets.TENSORS).read_bytes()[:-10])
    (folder / datasets.TOLD).write_text(json.dumps(told))
    with pytest.raises(ValueError):
        DistilledDataset.load(folder, base=clip, tokenizer=Words(), seeing=PLAIN)


@pytest.mark.parametrize(
    ("name", "value"),
    [("base", 5), ("texts", "a"), ("texts", [1, 2, 3]), ("seeing", []), ("head", {}), ("head", 5), ("views", None)],
)
def test_a_description_of_another_shape_is_refused_by_its_file(few, clip, tmp_path, name, value):
    few.save(tmp_path / "few")
    file = tmp_path / "few" / datasets.TOLD
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(ValueError, match=datasets.TOLD):
        DistilledDataset.load(tmp_path / "few", base=clip, tokenizer=Words(), seeing=PLAIN)


def test_a_folder_of_something_else_is_refused_and_stays(few, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError):
        few.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"
    with pytest.raises(ValueError, match=datasets.TOLD):
        DistilledDataset.load(tmp_path / "mine")


# --- what is said and refused


def test_texts_that_are_read_alike_are_told(clip):
    with pytest.warns(UserWarning, match="'red' and 'blue' alike"):
        made = distiller(clip, ["one", "two", "one"]).fit(coloured())
    assert any("alike" in note for note in made.notes)


def test_a_base_that_was_trained_on_the_classes_is_a_leak():
    images = coloured(9)
    known = Images.of(images.store.array, labels=images.labels, label_names=["cat", "dog", "ship"])
    made = distiller("clip-cifar10", "a photo of {}", tiles=1, rank=0, head_rank=0).fit(known)
    assert any(note.startswith("leak") for note in made.notes)


@pytest.mark.parametrize(
    "bad",
    [{"ipc": 0}, {"ipc": 1.5}, {"rank": -1}, {"tiles": 0}, {"epochs": 0}, {"lr": 0.0}, {"lr": float("inf")},
     {"weight": -0.1}, {"loss": "l1"}, {"start": "random"}, {"crops": 0}, {"candidates": 0}, {"teachers": 0},
     {"teachers": []}, {"size": 1}, {"seed": -1}, {"batch_size": True}],
)  # fmt: skip
def test_what_is_out_of_range_is_refused_before_work(bad, clip):
    with pytest.raises(ValueError, match=next(iter(bad))):
        distiller(clip, **bad)


@pytest.mark.parametrize(
    ("texts", "said"),
    [("a photo", "{}"), ("{} and {}", "{}"), (["one", "two"], "2 class texts for 3"), (["one", " ", "three"], "' '")],
)
def test_texts_that_do_not_fit_the_classes_are_refused(clip, texts, said):
    with pytest.raises(ValueError, match=said.replace("{", r"\{").replace("}", r"\}")):
        distiller(clip, texts).fit(coloured())


def test_too_few_squares_are_refused_with_what_would_do(clip):
    with pytest.raises(ValueError, match=r"class 'red' gives 8 squares.*needs 12: ipc=2"):
        distiller(clip, ipc=3).fit(coloured(24))
    with pytest.raises(ValueError, match="tiles=1 and ipc=1"):
        distiller(clip).fit(coloured(3))
    with pytest.raises(ValueError, match="more candidates"):
        distiller(clip, candidates=3).fit(coloured(24))


def test_a_class_without_pictures_is_named(clip):
    images = coloured(24)
    more = Images.of(images.store.array, labels=images.labels, label_names=["red", "green", "blue", "grey"])
    with pytest.raises(ValueError, match="no pictures of grey"):
        distiller(clip, [*TEXTS, "grey"]).fit(more)
    with pytest.raises(ValueError, match="no classes"):
        distiller(clip).fit(Images.of(images.store.array))
    with pytest.raises(ValueError, match="only one class"):
        distiller(clip, TEXTS[:1]).fit(Images.of(images.store.array, labels=[0] * 24, label_names=["red"]))


def test_options_of_another_kind_of_base_are_refused(clip, head):
    with pytest.raises(ValueError, match="leave tokenizer out"):
        distiller("clip-cifar10", tokenizer=Words())
    with pytest.raises(ValueError, match="leave seeing out"):
        distiller("clip-cifar10", "{}", seeing=PLAIN).fit(coloured())
    with pytest.raises(ValueError, match="leave it out"):
        distiller(Convolutions(), head, tokenizer=Words()).fit(coloured())


class Colours(nn.Module):
    """Logits of a picture's mean colours."""

    def __init__(self, count=3, shift=0.0):
        super().__init__()
        self.out, self.shift = nn.Linear(3, count), shift

    def forward(self, x):
        return self.out(x.mean((2, 3))) + self.shift


@pytest.fixture
def unlearned(monkeypatch):
    """Nothing is trained before what cannot work is refused."""
    for module, name in ((hello, "snapshots"), (hello.Distiller, "squares"), (hello.Distiller, "_learn")):
        monkeypatch.setattr(module, name, None)


@pytest.mark.parametrize(
    ("teachers", "said"),
    [([Colours(2)], r"shape \(1, 2\).* 3 classes"), ([Colours(), Colours(1)], "teacher 1 gives"),
     ([Colours(shift=float("nan"))], "not finite"), ([nn.Linear(5, 3)], "teacher 0 cannot take"),
     ([len], "modules that give logits"), (Colours(), "list of modules"), (True, "list of modules"),
     (2.5, "list of modules")],
)  # fmt: skip
def test_what_cannot_teach_is_refused_before_work(clip, unlearned, teachers, said):
    with pytest.raises(ValueError, match=said):
        distiller(clip, teachers=teachers).fit(coloured())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_teachers_bases_and_students_of_any_precision_are_asked_in_their_own(clip, dtype):
    teacher = Colours().to(dtype)
    made = distiller(copy.deepcopy(clip).to(dtype), teachers=[teacher]).fit(coloured())
    assert made.labels(torch.rand(1, 3, 16, 16)).dtype == torch.float32
    assert next(teacher.parameters()).dtype == dtype
    train_student(network("convnet", 3, width=4).to(dtype), made, epochs=1)


def small_encoders():
    from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTForImageClassification, ViTModel

    vit = ViTConfig(hidden_size=6, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16,
                    patch_size=8)  # fmt: skip
    net = ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic")
    return {"vit": ViTModel(vit), "resnet": ResNetModel(net), "classifier": ViTForImageClassification(vit),
            "no pooler": ViTModel(vit, add_pooling_layer=False), "other size": Convolutions()}  # fmt: skip


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_encoders_of_transformers_work_with_a_head_of_numbers(head, name):
    made = distiller(small_encoders()[name], head).fit(coloured())
    assert made.labels(torch.rand(2, 3, 16, 16)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "width", "said"),
    [
        ("classifier", 6, "without the head"),
        ("no pooler", 6, "gives no features"),
        ("other size", 5, "6 features.*has 5"),
    ],
)
def test_what_gives_no_features_for_the_head_is_refused_before_work(unlearned, name, width, said):
    with pytest.raises(ValueError, match=said):
        distiller(small_encoders()[name], torch.randn(3, width)).fit(coloured())


@pytest.mark.parametrize("bad", [{"device": "cpuu"}, {"device": "cuda:99"}, {"views": "none"}])
def test_devices_and_views_that_are_none_are_refused_by_name(clip, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        distiller(clip, **bad)


@pytest.mark.parametrize(
    ("data", "said"),
    [(None, "NoneType"), ([1, 2], "picture 0 is a int"), ([(coloured()[0], 0.5)], "class 0.5"),
     ([(coloured()[0], "cat")], "class 'cat'"), ([(coloured()[0], torch.tensor(1.0))], "whole number")],
)  # fmt: skip
def test_what_is_no_data_set_of_pictures_with_class_indices_is_refused(clip, data, said):
    with pytest.raises(ValueError, match=said):
        distiller(clip).fit(data)


def test_a_head_that_is_an_array_of_numpy_is_refused_by_name():
    with pytest.raises(ValueError, match="array of numpy"):
        distiller(Convolutions(), np.ones((3, 6))).fit(coloured())


class Listed(torch.utils.data.Dataset):
    """As torchvision's: a picture and a class."""

    classes = ("red", "green", "blue")

    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, i):
        return self.pictures[i], i % 3


@pytest.mark.parametrize("kind", ["pillow", "grey", "array", "grey tensor", "tensor"])
def test_a_torch_data_set_of_any_kind_of_picture_is_read(clip, kind):
    from PIL import Image

    from rankwise.vision.distilled.pictures import collected

    arrays = [coloured(24)[i] for i in range(24)]
    made = {
        "pillow": lambda a: Image.fromarray(a), "grey": lambda a: Image.fromarray(a).convert("L"), "array": lambda a: a,
        "grey tensor": lambda a: torch.from_numpy(a[None, ..., 0] / 255),
        "tensor": lambda a: torch.from_numpy(a.transpose(2, 0, 1) / 255).float(),
    }  # fmt: skip
    real = collected(Listed([made[kind](a) for a in arrays]), None)
    assert real.images.shape == (24, 3, 16, 16)
    assert real.names == ["red", "green", "blue"]
    if "grey" in kind:
        assert torch.equal(real.images[:, 0], real.images[:, 2])
    else:
        assert np.array_equal(real.images[5].permute(1, 2, 0).numpy(), arrays[5])


@pytest.mark.parametrize(
    ("picture", "said"),
    [(torch.full((3, 8, 8), 2.0), "normalisation"), (torch.rand(4, 8, 8), "shape"), (np.zeros((8, 8, 3)), "uint8"),
     (np.zeros((8, 8, 4), np.uint8), "shape")],
)  # fmt: skip
def test_what_is_no_picture_is_refused(clip, picture, said):
    with pytest.raises(ValueError, match=said):
        distiller(clip).fit(Listed([picture] * 6))


def test_pictures_that_are_no_squares_are_cut_to_the_bases_size_and_it_is_said(clip):
    wide = coloured(24).store.array.repeat(2, axis=2)
    made = distiller(clip, size=8).fit(Images.of(wide, labels=np.arange(24) % 3, label_names=["red", "green", "blue"]))
    assert made.images.shape == (3, 3, 8, 8)
    assert any("8 x 8" in note for note in made.notes)
