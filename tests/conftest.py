"""Fixtures for all suites."""

import pathlib

import pytest

from support import TARGET, Programs


def pytest_addoption(parser):
    parser.addoption(
        "--programs",
        type=pathlib.Path,
        default=TARGET / "release",
        help="folder with the built programs",
    )


@pytest.fixture(scope="session")
def programs(pytestconfig):
    return Programs(pytestconfig.getoption("programs").resolve())
