"""What an optimizer makes of the scale of a gradient, told from the names of its classes."""

from collections.abc import Mapping, Sequence

from lightning_calib.report.run import Kind

# The update does not change when every gradient of a tensor is multiplied by one number, but for eps ...
_ADAM = """
    adam adamw sparseadam adamax nadam radam rmsprop adagrad adadelta adafactor adafactorbv adafactorbigvision
    fusedadam fusedadagrad fusedlamb fusednovograd deepspeedcpuadam deepspeedcpuadagrad onebitadam zerooneadam
    onebitlamb pagedadamw adamw8bit adam8bit lamb lambw lars larc laprop novograd nvnovograd yogi amsgrad came soap
    shampoo scalableshampoo distributedshampoo sm3 adan adanw adanp prodigy adopt stableadamw stablespam spam
    schedulefreeadamw schedulefreeradam ranger ranger21 rangerqh kron emofact emonavi alice galore fira apollodqn racs
    conda grams mars bcos flashadamw novo adai splus fromage nero rose adalite amos vsgd kate diffgrad padam aida
    lorarite sara demo exadam
"""
# ... each element moves by the sign of its gradient (and of an average of it) ...
_SIGN = """
    lion lionw decoupledlionw pagedlion lion8bit fusedlion deepspeedcpulion signsgd signum rprop tiger emolynx ano
    dadaptlion
"""
# ... each matrix moves by the nearest orthogonal matrix, whatever its norm ...
_MUON = """
    muon muonclip muonw adamuon adago normuon distributedmuon singledevicemuon muonwithauxadam
    singledevicemuonwithauxadam dion dion2 scion scionlight spectralsphere polargrad magma orthosgd
"""
# ... or the update is proportional to the gradient.
_SGD = """
    sgd sgdw sgdp sgdsai asgd accsgd aggmo qhm pid pnm momentum momo fusedsgd nag gravity schedulefreesgd lomo igt
"""
# These look like one of the above by name, and are not: the update depends on the scale in a way of its own.
_OTHER = """
    lbfgs madgrad mirrormadgrad dadaptsgd dadaptadagrad sophia sophiag sophiah adahessian ftrl alig a2grad apollo swats
    msvag srmm adalomo focus avagrad bsam
"""
_NAMES: tuple[tuple[Kind, str], ...] = (
    ("adam", _ADAM),
    ("sign", _SIGN),
    ("muon", _MUON),
    ("sgd", _SGD),
    ("other", _OTHER),
)
_KNOWN = {name: kind for kind, names in _NAMES for name in names.split()}
_PARTS: tuple[tuple[str, Kind], ...] = (
    ("muon", "muon"),
    ("lion", "sign"),
    ("sign", "sign"),
    ("adam", "adam"),
    ("ademamix", "adam"),
    ("adafactor", "adam"),
    ("adagrad", "adam"),
    ("rmsprop", "adam"),
    ("lamb", "adam"),
    ("shampoo", "adam"),
    ("sgd", "sgd"),
)
_FALLBACKS: dict[Kind, Kind] = {"muon": "adam"}


def optimizer_kind(names: Sequence[str], group: Mapping[str, object] | None = None) -> Kind:
    """The kind of one parameter group.

    The first name that is known decides; then the first that contains a known part ("CautiousAdamW"); then "ada" at the
    beginning. An optimizer that is of two kinds says in the group which one it uses there: ``use_muon`` (Keller
    Jordan's, pytorch_optimizer's), ``use_fallback`` (timm's), ``algorithm`` or ``algo`` (Dion's).

    Args:
        names: Class names, most special first, as in ``type(optimizer).__mro__``.
        group: The parameter group; None where it is not known.

    Example:
        >>> optimizer_kind(["AdamW", "Adam", "Optimizer"]), optimizer_kind(["MyLion", "Lion"])
        ('adam', 'sign')
        >>> optimizer_kind(["Muon"], {"use_muon": False})
        'adam'
    """
    group = group or {}
    named = group.get("algorithm", group.get("algo"))
    if isinstance(named, str) and _by_name([named]) != "other":
        return _by_name([named])
    kind = _by_name(names)
    if kind in _FALLBACKS and (group.get("use_muon") is False or group.get("use_fallback") is True):
        return _FALLBACKS[kind]
    return kind


def _by_name(names: Sequence[str]) -> Kind:
    plain = [name.lower().replace("_", "") for name in names]
    known = next((_KNOWN[name] for name in plain if name in _KNOWN), None)
    if known is not None:
        return known
    part = next((kind for name in plain for part, kind in _PARTS if part in name), None)
    if part is not None:
        return part
    return "adam" if any(name.startswith("ada") for name in plain) else "other"
