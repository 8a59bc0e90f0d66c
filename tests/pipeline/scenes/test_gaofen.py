"""Names, XML and RPB of Gaofen deliveries: what they say, and that nothing but GaofenError ever comes of bad ones."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.scenes.gaofen import (
    GaofenError,
    Name,
    check_name,
    parse_name,
    parse_rpb,
    parse_rpc,
    parse_xml,
    read_acquisition_time,
    read_band_names,
    read_gsd,
)
from tests.deliveries import NAME, STEM, camera, fields, rpb, rpc_text, xml

GOOD_XML, GOOD_RPB, GOOD_RPC = xml(fields()).encode(), rpb(camera()), rpc_text(camera())


# --- names

NAMES = {
    "GF1_PMS1_E69.4_N33.3_20220624_L1A0006547030-MSS1": ("GF1", "PMS1", 69.4, 33.3, "MSS1"),
    "GF2_PMS2_W91.0_S17.6_20200510_L1A0004793969-PAN2": ("GF2", "PMS2", -91.0, -17.6, "PAN2"),
    "GF1_WFV3_E89.0_N23.9_20200523_L1A0004819525": ("GF1", "WFV3", 89.0, 23.9, ""),
    "GF6_WFV_E116.1_N40.3_20200523_L1A1119991234-1": ("GF6", "WFV", 116.1, 40.3, "1"),
    "GF6_PMS_E120.0_N9.0_20200523_L1A1119991234-MUX": ("GF6", "PMS", 120.0, 9.0, "MUX"),
    "GF1B_PMS_E5.1_S0.4_20200523_L1A1227659999-MUX": ("GF1B", "PMS", 5.1, -0.4, "MUX"),
    "GF1D_PMS_W0.5_N51.2_20200523_L1A1227659999-PAN": ("GF1D", "PMS", -0.5, 51.2, "PAN"),
    "GF7_DLC_E116.1_N40.3_20200523_L1A0000123456-BWDMUX": ("GF7", "DLC", 116.1, 40.3, "BWDMUX"),
    "ZY302_TMS_E92.7_N35.0_20171027_L1A0000345912-NAD": ("ZY302", "TMS", 92.7, 35.0, "NAD"),
    "ZY3_MUX_E116.6_N40.6_20120813_L1A0000603304": ("ZY3", "MUX", 116.6, 40.6, ""),
    "ZY1E_VNIC_E112.3_N36.4_20200607_L1A0000123456-MUX": ("ZY1E", "VNIC", 112.3, 36.4, "MUX"),
    "ZY02C_PMS_E112.3_N36.4_20130607_L1C0001234567-MUX": ("ZY02C", "PMS", 112.3, 36.4, "MUX"),
    "HJ2A_CCD3_E112.3_N36.4_20210607_L1A0000123456": ("HJ2A", "CCD3", 112.3, 36.4, ""),
    "CB04A_WPM_E112.3_N36.4_20200722_L1A0000123456-PAN": ("CB04A", "WPM", 112.3, 36.4, "PAN"),
    "GF4_PMI_E105.0_N31.0_20200523_L1A2147483647": ("GF4", "PMI", 105.0, 31.0, ""),
}


@pytest.mark.parametrize("stem", NAMES)
def test_a_name_says_sensor_place_and_part(stem: str) -> None:
    name = parse_name(stem)
    assert (name.satellite, name.sensor, name.lon, name.lat, name.part) == NAMES[stem]
    assert name.date in stem
    assert name.level in ("L1A", "L1C")
    assert f"_{name.level}{name.product}" in stem


@pytest.mark.parametrize(
    ("stem", "scene", "kind"),
    [
        (STEM, NAME, "mss"),
        (f"{NAME}-PAN1", NAME, "pan"),
        (NAME, NAME, "mss"),
        (f"{NAME}-2", f"{NAME}-2", "mss"),
        (f"{NAME}-BWDPAN", NAME, "pan"),
        (f"{NAME}-FWDPAN", NAME, "other"),
        (NAME.replace("PMS1", "NAD"), NAME.replace("PMS1", "NAD"), "pan"),
        (NAME.replace("PMS1", "MUX"), NAME.replace("PMS1", "MUX"), "mss"),
        (NAME.replace("PMS1", "FWD"), NAME.replace("PMS1", "FWD"), "other"),
    ],
)
def test_a_name_says_scene_and_kind(stem: str, scene: str, kind: str) -> None:
    assert (parse_name(stem).scene, parse_name(stem).kind) == (scene, kind)


@pytest.mark.parametrize(
    "stem",
    [
        "",
        "LC08_L1TP_128043_20200523_01_T1",
        f"{STEM}.tiff",
        f"{STEM}_thumb",
        f"{STEM}\n",
        f" {STEM}",
        "GF1_PMS1_105.3E_N24.8_20200523_L1A0001234567-MSS1",
        "GF1_PMS1_E105.3_N24.8_2020-05-23_L1A0001234567-MSS1",
        "GF1_PMS1_E105.3_N24.8_20200523_L1A-MSS1",
        "GF1_PMS1_E105.3_N24.8_20200523_L1A000123456\N{ARABIC-INDIC DIGIT SEVEN}-MSS1",
    ],
)
def test_another_name_is_refused(stem: str) -> None:
    with pytest.raises(GaofenError, match="not the name of a Gaofen image"):
        parse_name(stem)


# --- XML


def test_both_schemas_are_read_whole_but_for_empty_elements() -> None:
    longer = fields() | {"CenterLatitude": 24.8, "StripID": 7, "Empty": ""}
    for said in (fields(), longer):
        wanted = {key: str(value) for key, value in said.items() if value not in (None, "")}
        assert parse_xml(xml(said).encode()) == wanted
    assert parse_xml(GOOD_XML)["CloudPercent"] == "101"


def test_a_tag_used_again_keeps_every_value() -> None:
    text = b"<r><Gain>1</Gain><Gain>2</Gain><Gain_2>3</Gain_2><Gain>4</Gain><g><Gain> 5 </Gain></g></r>"
    found = parse_xml(text)
    assert list(found) == ["Gain", "Gain_2", "Gain_2_2", "Gain_3", "Gain_4"]
    assert list(found.values()) == ["1", "2", "3", "4", "5"]


BOMB = '<!DOCTYPE r [<!ENTITY a "aaaaaaaaaa">{}]><r><x>&j;</x></r>'.format(
    "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True))
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "the file is empty"),
        (b" \n\t", "the file is empty"),
        (b"<r>", "not a product XML"),
        (b"<r><a/><b> </b></r>", "the XML contains no values"),
        (GOOD_XML[: len(GOOD_XML) // 2], "not a product XML"),
        (BOMB.encode(), "not a product XML"),
        (b'<!DOCTYPE r SYSTEM "file:///etc/hostname"><r><a>1</a></r>', "not a product XML"),
        (b'<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/hostname">]><r><a>&x;</a></r>', "not a product XML"),
        (b'<?xml version="1.0" encoding="klingon"?><r><a>1</a></r>', "not a product XML"),
        (bytes(range(256)), "not a product XML"),
    ],
)
def test_an_xml_that_cannot_be_read_is_refused(text: bytes, sentence: str) -> None:
    with pytest.raises(GaofenError, match=sentence):
        parse_xml(text)


@pytest.mark.parametrize("declared", ["GB2312", "gbk", "GB18030", "UTF-16", "utf-8"])
def test_an_xml_is_read_in_the_encoding_that_it_declares(declared: str) -> None:
    said = xml(fields() | {"Station": "密云站"}).replace("UTF-8", declared)
    assert parse_xml(said.encode(declared))["Station"] == "密云站"


@pytest.mark.parametrize("declared", ["GB2312", "UTF-16"])
def test_no_encoding_lets_entities_in(declared: str) -> None:
    text = f'<?xml version="1.0" encoding="{declared}"?>{BOMB}'
    with pytest.raises(GaofenError, match="not a product XML"):
        parse_xml(text.encode(declared))


@pytest.mark.parametrize("declaration", ['<?xml version="1.0" encoding="UTF-8" ?>', '<?xml version="1.0"?>', ""])
def test_an_xml_that_is_not_the_utf_8_that_it_declares_is_gb18030(declaration: str) -> None:
    text = xml(fields() | {"Station": "密云站"}).replace('<?xml version="1.0" encoding="UTF-8" ?>', declaration)
    assert parse_xml(text.encode("gbk"))["Station"] == "密云站"


def test_bytes_of_no_encoding_are_refused() -> None:
    text = xml(fields() | {"Station": "密云站"})
    for said in (text.encode() + b"\xff", text.replace("UTF-8", "GB2312").encode() + b"\xff"):
        with pytest.raises(GaofenError, match="not a product XML"):
            parse_xml(said)


def test_many_equal_tags_take_no_longer_than_many_others() -> None:
    assert len(parse_xml(b"<r>" + b"<a>1</a>" * 100_000 + b"</r>")) == 100_000


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, ""),
        ({"SatelliteID": "GF-1", "SensorID": None, "CenterTime": None, "ReceiveTime": None}, ""),
        ({"CenterTime": "2020-05-24 07:59:59"}, ""),  # 23:59:59 UTC of the day that the name says
        ({"SatelliteID": "GF1B"}, "SatelliteID is GF1B, but the image is of GF1: the XML of another scene"),
        ({"SensorID": "WFV2"}, "SensorID is WFV2, but the image is of PMS1: the XML of another scene"),
        ({"CenterTime": "2020-05-26 05:03:08"}, "its time is 2020-05-25, but the image is of 2020-05-23"),
    ],
)
def test_an_xml_of_another_scene_is_told(change: dict[str, object], sentence: str) -> None:
    said = {key: str(value) for key, value in (fields() | change).items() if value is not None}
    if not sentence:
        check_name(parse_name(STEM), said)
        return
    with pytest.raises(GaofenError, match=sentence):
        check_name(parse_name(STEM), said)


# --- what the XML means


@pytest.mark.parametrize(
    ("said", "utc"),
    [
        ({"CenterTime": "2020-05-23 05:03:08"}, "2020-05-22T21:03:08+00:00"),  # Beijing time, the day before
        ({"CenterTime": "2020-05-23 13:02:53.25"}, "2020-05-23T05:02:53.250000+00:00"),
        ({"StartTime": "2020-01-01 02:00:00", "ReceiveTime": "2020-01-01 02:00:00"}, "2019-12-31T18:00:00+00:00"),
        ({"CenterTime": "0", "StartTime": "2020-05-23 13:00:00"}, "2020-05-23T05:00:00+00:00"),
        ({"ReceiveTime": "2020-05-22 21:02:53"}, "2020-05-22T21:02:53+00:00"),  # this one is UTC
        ({"CenterTime": "2020-05-23T05:03:08Z"}, "2020-05-23T05:03:08+00:00"),  # it says itself what it is
    ],
)
def test_times_become_utc(said: dict[str, str], utc: str) -> None:
    found = read_acquisition_time(said)
    assert found == datetime.fromisoformat(utc)
    assert found is not None
    assert found.tzinfo is UTC


@pytest.mark.parametrize("said", [{}, {"CenterTime": ""}, {"CenterTime": "yesterday"}, {"StartTime": "0001-01-01"}])
def test_a_time_that_cannot_be_read_is_unknown(said: dict[str, str]) -> None:
    assert read_acquisition_time(said) is None


def named(stem: str) -> Name:
    return parse_name(f"{stem.split('-')[0]}_E105.3_N24.8_20200523_L1A1{stem[len(stem.split('-')[0]) :]}")


@pytest.mark.parametrize(
    ("stem", "said", "metres"),
    [
        ("GF1_PMS1-MSS1", "8", 8.0),
        ("GF1_PMS1-MSS1", "7.9", 7.9),
        ("GF1_PMS1-MSS1", "", 8.0),
        ("GF1_PMS1-MSS1", "nan", 8.0),
        ("GF1_PMS1-MSS1", "-8", 8.0),
        ("GF1_PMS1-MSS1", "1e-9", 8.0),
        ("GF1_PMS1-MSS1", "8 m", 8.0),
        ("GF1_PMS2-PAN2", "", 2.0),
        ("GF2_PMS1-MSS1", "", 3.24),
        ("GF2_PMS1-PAN1", "", 0.81),
        ("GF1_WFV4", "", 16.0),
        ("GF6_WFV-2", "", 16.0),
        ("GF6_PMS-PAN", "", 2.0),
        ("GF1B_PMS-MUX", "", 8.0),
        ("GF1C_PMS-MUX", "", 8.0),
        ("GF1D_PMS-PAN", "", 2.0),
        ("GF6_PMS-MUX", "", 8.0),
        ("GF7_DLC-BWDMUX", "", 2.6),
        ("GF7_DLC-BWDPAN", "", 0.65),
    ],
)
def test_gsd_is_the_xmls_or_the_sensors(stem: str, said: str, metres: float) -> None:
    assert read_gsd(named(stem), {"ImageGSD": said}) == metres


def test_a_gsd_that_nobody_knows_is_refused() -> None:
    with pytest.raises(GaofenError, match="ImageGSD is missing, and the GSD of GF4 PMI is not known"):
        read_gsd(named("GF4_PMI"), {})


@pytest.mark.parametrize(
    ("stem", "said", "count", "names"),
    [
        ("GF1_PMS1-MSS1", "1,2,3,4", 4, "blue green red nir"),
        ("GF1_PMS1-MSS1", "4, 3, 2", 3, "nir red green"),
        ("GF1_PMS1-MSS1", "", 4, "blue green red nir"),
        ("GF1_PMS1-MSS1", "", 3, "band_1 band_2 band_3"),
        ("GF1_PMS1-MSS1", "1,1,2,3", 4, "blue green red nir"),
        ("GF1_PMS1-MSS1", "1,2,3,9", 4, "blue green red nir"),
        ("GF1_PMS1-PAN1", "1,2,3,4", 1, "pan"),
        ("GF1_PMS1-PAN1", "5", 1, "pan"),
        ("GF6_PMS-PAN", "", 1, "pan"),
        ("GF6_WFV-1", "1,2,3,4,5,6,7,8", 8, "blue green red nir red_edge_1 red_edge_2 coastal yellow"),
        ("GF6_WFV-1", "8,5", 2, "yellow red_edge_1"),
        ("GF1_WFV1", "5,6", 2, "band_1 band_2"),
    ],
)
def test_bands_follow_the_xmls_numbers(stem: str, said: str, count: int, names: str) -> None:
    assert read_band_names(named(stem), {"Bands": said}, count) == tuple(names.split())


# --- RPB


@pytest.mark.parametrize("semicolon", [";", "", " ;"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_an_rpb_is_read_with_and_without_semicolons(semicolon: str, newline: str) -> None:
    wanted = camera(heading=77, lean=(0.1, -0.2))
    assert parse_rpb(rpb(wanted, semicolon).replace("\n", newline)) == wanted


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("lineOffset", "lineOfset", "lineOffset is missing"),
        ("sampDenCoef", "sampDenCoeff", "sampDenCoef is missing"),
        ("heightScale = 1000.0", "heightScale = high", "heightScale is 'high', expected a number"),
        ("heightScale = 1000.0", "heightScale = 0", "height_scale must be a positive number, got 0.0"),
        ("heightOffset = 500.0", "heightOffset = nan", "height_off is not a finite number"),
        ("heightOffset = 500.0;", "heightOffset = ;", "heightOffset is missing"),
        ("latOffset = 24.8", "latOffset = 248", "latitude 248.0, longitude 105.3 is not a place on Earth"),
        ("\t\t\t1.0,\n", "", "lineDenCoef has 19 coefficients, expected 20"),
        ("\t\t\t1.0,\n", "\t\t\t1.0,\n\t\t\t0.5,\n", "lineDenCoef has 21 coefficients, expected 20"),
        ("\t\t\t1.0,\n", "\t\t\tone,\n", "lineDenCoef contains a value that is not a number"),
        ("\t\t\t1.0,\n", "\t\t\tNaN,\n", "line_den holds a value that is not a finite number"),
        ("\t\t\t1.0,\n", "\t\t\t0.0,\n", "line_den is all zeros"),
        (");\n\tlineDenCoef", ";\n\tlineDenCoef", "lineNumCoef is missing"),
    ],
)
def test_a_broken_rpb_is_refused_by_the_field_at_fault(old: str, new: str, sentence: str) -> None:
    text = rpb(camera())
    assert old in text
    with pytest.raises(GaofenError, match=sentence):
        parse_rpb(text.replace(old, new, 1))


@pytest.mark.parametrize("text", ["", " \n\x0c"])
def test_an_empty_rpb_is_refused(text: str) -> None:
    with pytest.raises(GaofenError, match="the file is empty"):
        parse_rpb(text)


@pytest.mark.parametrize("text", ["a" * 2_000_000, "a = (" * 400_000, "lineOffset =" + " " * 1_000_000])
def test_a_file_of_megabytes_is_no_trap(text: str) -> None:
    """Read in a time that grows with its square, one long word would take an hour."""
    with pytest.raises(GaofenError, match="lineOffset is missing"):
        parse_rpb(text)


# --- RPC text


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_an_rpc_text_is_the_camera_of_the_rpb(newline: str) -> None:
    wanted = camera(heading=77, lean=(0.1, -0.2))
    assert parse_rpc(rpc_text(wanted).replace("\n", newline)) == parse_rpb(rpb(wanted)) == wanted
    assert parse_rpc(rpc_text(wanted).replace(": ", " = ")) == wanted


@pytest.mark.parametrize(
    "spell",
    [
        str.lower,
        lambda text: text.replace(":", ""),
        lambda text: re.sub(r"COEFF_(\d)\b", r"COEFF_0\1", text),
        lambda text: re.sub(r"(\d)e([-+]?\d+)", r"\1D\2", re.sub(r"(: -?\d+\.\d+)(?= |\n)", r"\1e+00", text)),
        lambda text: "\r".join([f"ERR_BIAS{line}" for line in ("= 1.0", ": 2 meters")] + text.splitlines()),
        lambda text: re.sub(r"\n\w+_COEFF_(\d+):", lambda at: at[0] if at[1] == "1" else "", text).replace("_1:", ":"),
        lambda text: re.sub(r"\n\w+_COEFF_(\d+):", lambda at: at[0] if at[1] == "1" else ",", text).replace("_1:", ":"),
    ],
    ids=["small letters", "no colon", "leading zeros", "exponents of Fortran", "CR and biases", "lists", "commas"],
)
def test_an_rpc_text_is_read_in_every_spelling(spell: Callable[[str], str]) -> None:
    wanted = camera(heading=77, lean=(0.1, -0.2))
    text = spell(rpc_text(wanted))
    assert text != rpc_text(wanted)
    assert parse_rpc(text) == wanted


def test_exponents_of_fortran_are_read_in_an_rpb() -> None:
    wanted = camera(heading=77, lean=(0.1, -0.2))
    text = re.sub(r"(= -?\d+\.\d+|\t-?\d+\.\d+)(?=[;,\n])", r"\1D+00", rpb(wanted))
    assert text.count("D+00") > 50
    assert parse_rpb(text) == wanted


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("LINE_OFF: 34.5", "LINE_OFF: 34,5", "LINE_OFF is '34,5', expected a number"),
        ("LINE_NUM_COEFF_1:", "LINE_NUM_COEFF:", "LINE_NUM_COEFF has 1 coefficients, expected 20"),
        ("SAMP_OFF", "SAMPOFF", "SAMP_OFF is missing"),
        ("LINE_DEN_COEFF_20", "LINE_DEN_COEFF_21", "LINE_DEN_COEFF_20 is missing"),
        ("HEIGHT_SCALE: 1000.0", "HEIGHT_SCALE: -1", "height_scale must be a positive number, got -1.0"),
        ("LINE_DEN_COEFF_1: 1.0", "LINE_DEN_COEFF_1: 0", "line_den is all zeros"),
        ("LINE_DEN_COEFF_1: 1.0", "LINE_DEN_COEFF_1: one", "LINE_DEN_COEFF_1 is 'one', expected a number"),
        ("LINE_DEN_COEFF_1: 1.0", "LINE_DEN_COEFF_1: inf", "line_den holds a value that is not a finite number"),
        ("LINE_OFF: 34.5", f"LINE_OFF: {'9x' * 999_999}", "LINE_OFF is '9x9x.{36}', expected a number"),
    ],
)
def test_a_broken_rpc_text_is_refused_by_the_field_at_fault(old: str, new: str, sentence: str) -> None:
    assert old in GOOD_RPC
    with pytest.raises(GaofenError, match=sentence):
        parse_rpc(GOOD_RPC.replace(old, new, 1))


@pytest.mark.parametrize(
    "text", ["A" * 2_000_000, "A:" * 1_000_000, "LINE_OFF:" + " " * 1_000_000, "\n" * 2_000_000 + "x"]
)
def test_an_rpc_text_of_megabytes_is_no_trap(text: str) -> None:
    with pytest.raises(GaofenError, match=r"LINE_OFF is missing|the file is empty"):
        parse_rpc(text)


# --- whatever comes


@st.composite
def spoiled(draw: st.DrawFn, good: str) -> str:
    """A good file after some cuts, insertions and repetitions."""
    text = good
    for _ in range(draw(st.integers(1, 4))):
        first, last = sorted(draw(st.tuples(*[st.integers(0, len(text))] * 2)))
        last = min(last, first + draw(st.integers(0, 200)))
        put = draw(st.sampled_from(["", "0", "(", ")", ";", "=", "nan", "1e999", "-", "<", "&", "\0", "é"]) | st.text())
        text = text[:first] + put + text[first if draw(st.booleans()) else last :]
    return text


@given(text=st.text() | spoiled(STEM) | st.from_regex(r"GF\d_[A-Z]+\d_[EW]\d+_[NS]\d+_\d{8}_L\d[A-Z]\d+.*"))
@settings(max_examples=150)
def test_only_gaofen_error_comes_of_a_name(text: str) -> None:
    try:
        found = parse_name(text)
    except GaofenError:
        return
    assert found.satellite in text


def outcome(parse: Callable[[Any], Any], text: str | bytes) -> Any:
    """What a parser returns, or the sentence of its declared error; any other error comes through."""
    try:
        return parse(text)
    except GaofenError as error:
        return str(error)


@given(text=st.text() | spoiled(GOOD_RPB))
@settings(max_examples=200)
def test_only_gaofen_error_comes_of_an_rpb(text: str) -> None:
    found = outcome(parse_rpb, text)
    assert "\n" not in found if isinstance(found, str) else len(found.line_num) == 20


@given(text=st.text() | spoiled(GOOD_RPC))
@settings(max_examples=200)
def test_only_gaofen_error_comes_of_an_rpc_text(text: str) -> None:
    found = outcome(parse_rpc, text)
    assert "\n" not in found if isinstance(found, str) else len(found.line_num) == 20


@given(text=st.binary() | spoiled(GOOD_XML.decode()).map(lambda text: text.encode("utf-8", "surrogatepass")))
@settings(max_examples=200)
def test_only_gaofen_error_comes_of_an_xml(text: bytes) -> None:
    found = outcome(parse_xml, text)
    assert "\n" not in found if isinstance(found, str) else found and all(found.values())


VALUES = st.text() | st.floats().map(str) | st.datetimes().map(str) | st.integers().map(str)
KEYS = ("ImageGSD", "Bands", "CenterTime", "StartTime", "ReceiveTime")


@given(
    said=st.dictionaries(st.sampled_from(KEYS), VALUES | st.just("1,2,3,4")),
    stem=st.sampled_from([*NAMES]),
    count=st.integers(1, 12),
)
@example(said={"CenterTime": "0001-01-01 00:00:00"}, stem=STEM, count=4)
@example(said={"CenterTime": "9999-12-31T23:59:59-23:59"}, stem=STEM, count=4)
@settings(max_examples=200)
def test_only_gaofen_error_comes_of_what_an_xml_says(said: dict[str, Any], stem: str, count: int) -> None:
    name = parse_name(stem)
    names = read_band_names(name, said, count)
    assert len(set(names)) == count
    time = read_acquisition_time(said)
    assert time is None or time.tzinfo is UTC
    try:
        assert 0.1 <= read_gsd(name, said) <= 10_000
    except GaofenError as error:
        assert name.satellite in str(error)  # noqa: PT017 - raised for some of the examples only
