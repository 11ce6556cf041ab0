# What is no error on the command line but may not be what was meant: one line in the log.

from __future__ import annotations

import resource


def test_password_in_the_environment_and_no_user(start):
    """Nobody has to log in, which whoever has set it cannot want."""
    proxy = start(FASTSOCKS_PASSWORD="geheim")
    assert proxy.stop() == 0
    assert "FASTSOCKS_PASSWORD is set, but without -u USER nobody has to log in" in proxy.log()
    assert "geheim" not in proxy.log()


def test_password_file_that_others_may_read(start, tmp_path):
    file = tmp_path / "password"
    file.write_text("geheim\n")
    for mode, told in ((0o600, ""), (0o644, "may read it; chmod o-r"), (0o602, "chmod o-w")):
        file.chmod(mode)
        proxy = start("-u", "me", "--password-file", str(file))
        assert proxy.stop() == 0
        assert (told in proxy.log()) if told else ("WARNING" not in proxy.log())


def test_descriptors_for_a_few_sessions_only(start):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    pipes = hard // 2 - 50
    proxy = start("--max-pipes", str(pipes))
    assert proxy.stop() == 0
    assert f"sessions beside {pipes} pipes" in proxy.log()


def test_names_of_settings_are_those_of_flags(start):
    proxy = start("-b", "192.0.2.9")
    assert proxy.stop() == 0
    assert "source address 192.0.2.9 (-b): " in proxy.log()


def test_key_of_a_jsocks_file_writes_no_line_of_its_own(start, tmp_path):
    file = tmp_path / "socks.properties"
    file.write_text("host = 127.0.0.1\nrange = 127.\n\\u001b[31mkey\\n2026 = 1\n")
    proxy = start("--jsocks", str(file))
    assert proxy.stop() == 0
    assert "\x1b" not in proxy.log()
    assert all(" WARNING " in line or " INFO " in line for line in proxy.log().splitlines())
