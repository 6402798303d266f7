"""How sites, their addresses and their clients are written."""

from __future__ import annotations

import pytest

from fedelta.deployment.naming import client_numbers, host, host_and_port, site_name


@pytest.mark.parametrize("text", ["hamburg", "Site-1.b_c", "x" * 63])
def test_a_name_of_letters_and_digits_is_one(text: str):
    assert site_name(text) == text


@pytest.mark.parametrize("text", ["", "a/b", "../x", ".hidden", "x" * 64, "two words", "münchen"])
def test_a_name_that_is_no_file_name_everywhere_is_refused(text: str):
    with pytest.raises(ValueError, match="is no name of a site"):
        site_name(text)


@pytest.mark.parametrize("text", ["fl.example.org:9093", "localhost:1", "127.0.0.1:65535", "[::1]:9093"])
def test_host_and_port_are_an_address(text: str):
    assert host_and_port(text) == text


@pytest.mark.parametrize(
    "text",
    ["host", "host:", ":9093", "host:0", "host:65536", "https://host", "https://host:99", "h:٣", "::1:9093", "a b:1"],
)
def test_anything_else_is_no_address(text: str):
    with pytest.raises(ValueError, match=r"is no host and port, such as 'fl\.example\.org:9093'"):
        host_and_port(text)


@pytest.mark.parametrize("text", ["my host", "fl.example.org:9093", "", "a..b", "-a", "x" * 64 + ".org"])
def test_what_no_machine_is_called_is_no_host(text: str):
    with pytest.raises(ValueError, match="is no name or address of a machine"):
        host(text)


def test_a_host_with_other_letters_is_told_as_certificates_have_it():
    with pytest.raises(ValueError, match=r"a certificate has it as 'xn--mnchen-3ya\.de'"):
        host("münchen.de")


def test_ranges_and_numbers_are_the_clients_in_them():
    assert client_numbers("0-2, 7") == [0, 1, 2, 7]


@pytest.mark.parametrize("text", ["abc", "5-2", "1,,2", "0-99999999"])
def test_other_texts_are_no_clients(text: str):
    with pytest.raises(ValueError, match=text):
        client_numbers(text)
