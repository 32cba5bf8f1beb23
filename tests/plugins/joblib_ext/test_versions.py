"""Code versions share a cache, results keep their version, and the backend becomes known."""

import os
import pickle
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
from joblib import Memory

import joblib_ext

MODEL = "VERSION = {version}\n\n\ndef predict(x):\n    return {version}, x\n"
CALLER = """
    import sys, warnings
    warnings.simplefilter("ignore")
    sys.path.insert(0, sys.argv[1])
    import joblib_ext
    from joblib import Memory
    import model
    memory = Memory(sys.argv[2], backend=sys.argv[3], verbose=0)
    calls = 0
    cached = memory.cache(model.predict)
    print("ready", flush=True)
    for line in sys.stdin:
        if line == "clear\\n":
            cached.clear(warn=False)
            print("cleared", flush=True)
        else:
            print(*cached(int(line)), flush=True)
"""


class Caller:
    """A process with one version of the function."""

    def __init__(self, base, version, backend):
        code = base / f"code{version}"
        code.mkdir(exist_ok=True)
        (code / "model.py").write_text(MODEL.format(version=version))
        self.process = subprocess.Popen(
            [sys.executable, "-B", "-c", textwrap.dedent(CALLER), code, base / "cache", backend],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"
        self.version = version

    def ask(self, text):
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def wrong(self, x):
        return self.ask(x) != f"{self.version} {x}"

    def close(self):
        self.process.communicate()


@pytest.mark.parametrize(("backend", "correct"), [("local", False), ("shared", True)])
@pytest.mark.parametrize("clear", [False, True])
def test_two_versions_of_a_function_share_a_cache(tmp_path, backend, correct, clear):
    one, two = Caller(tmp_path, 1, backend), Caller(tmp_path, 2, backend)
    wrong = 0
    for x in range(30):
        first, second = (one, two) if x % 3 else (two, one)
        wrong += first.wrong(x) + second.wrong(x) + first.wrong(x)
        if clear and x % 7 == 3:
            first.ask("clear")
    one.close()
    two.close()
    assert (wrong == 0) is correct


def test_versions_do_not_wipe_each_other(tmp_path):
    for _ in range(2):
        for version in (1, 2):
            caller = Caller(tmp_path, version, "shared")
            assert not caller.wrong(5)
            caller.close()
    entries = [path for path in tmp_path.rglob("items/*/*/*/*") if path.is_file()]
    assert len(entries) == 2


def make(memory, number):
    """Functions of one name whose code differs."""
    scope = {}
    source = f"def same(x):\n    return {number}, x\n"
    filename = f"<ipython-input-{number}-000000000000>"
    exec(compile(source, filename, "exec"), scope)
    scope["same"].__module__ = "notebook"
    return memory.cache(scope["same"])


def test_functions_of_one_name_in_one_process_do_not_mix(tmp_path):
    memory = Memory(str(tmp_path), backend="shared", verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, two = make(memory, 1), make(memory, 2)
        one.clear(warn=False)  # joblib now trusts its own table for this one
        for _ in range(3):
            assert (one(1), two(1), one(2), two(2)) == ((1, 1), (2, 1), (1, 2), (2, 2))


def revived(memory, number, **options):
    """Whether the first call says that results of older code are used again."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        joblib_ext.cache(memory, make(memory, number).func, **options)(1)
    return sum("earlier version of its code" in str(each.message) for each in told)


def test_whoever_goes_back_to_older_code_is_told_that_its_results_are_used_again(tmp_path):
    def run(number, **options):
        return revived(Memory(str(tmp_path), backend="shared", verbose=0), number, **options)

    assert [run(1), run(1), run(2), run(2)] == [0, 0, 0, 0]
    first, _ = sorted(tmp_path.rglob("code.json"), key=os.path.getmtime)
    os.utime(first, (1, 1))
    assert [run(1), run(2)] == [1, 0]
    assert run(1, depends=[revived]) == run(1, version="1") == 0


def test_a_nested_call_of_a_namesake_does_not_move_the_outer_result(tmp_path):
    memory = Memory(str(tmp_path), backend="shared", verbose=0)
    calls = []

    def outer():
        def same(x):
            calls.append("outer")
            return ("outer", inner_cached(x))

        return same

    def inner():
        def same(x):
            calls.append("inner")
            return "inner", x

        return same

    first, second = outer(), inner()
    first.__qualname__ = second.__qualname__ = first.__name__ = second.__name__ = "same"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inner_cached = memory.cache(second)
        outer_cached = memory.cache(first)
        for _ in range(2):
            assert outer_cached(1) == ("outer", ("inner", 1))
            assert inner_cached(1) == ("inner", 1)
    assert calls == ["outer", "inner"]


def test_changed_code_of_a_living_function_gets_a_namespace_of_its_own(tmp_path):
    memory = Memory(str(tmp_path), backend="shared", verbose=0)

    def function(x):
        return "old", x

    def newer(x):
        return "new", x

    cached = memory.cache(function)
    assert cached(1) == ("old", 1)
    function.__code__ = newer.__code__
    assert cached(1) == ("new", 1)
    assert cached.call(2)[0] if isinstance(cached.call(2), tuple) else True
    assert cached(2) == ("new", 2)


def test_a_function_known_to_another_store_is_still_told_apart(tmp_path):
    def function(x):
        return x

    local = Memory(str(tmp_path / "local"), verbose=0).cache(function)
    local(1)  # joblib notes the function in a table that all stores share
    memory = Memory(str(tmp_path / "shared"), backend="shared", verbose=0)
    shared = memory.cache(function)
    shared(1)
    assert shared.check_call_in_cache(1)
    assert not shared.check_call_in_cache(2)


def test_a_reference_keeps_its_version(tmp_path):
    memory = Memory(str(tmp_path), backend="shared", verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, two = make(memory, 1), make(memory, 2)
        references = [one.call_and_shelve(1), two.call_and_shelve(1), one.call_and_shelve(1)]
        again = pickle.loads(pickle.dumps(references))
    assert [reference.get() for reference in references] == [(1, 1), (2, 1), (1, 1)]
    assert [reference.get() for reference in again] == [(1, 1), (2, 1), (1, 1)]


def test_a_cache_of_joblibs_own_is_left_alone(tmp_path):
    def function(x):
        return x

    local = Memory(str(tmp_path), verbose=0)
    local.cache(function)(1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    shared = Memory(str(tmp_path), backend="shared", verbose=0)
    shared.cache(function)(1)
    shared.reduce_size(items_limit=0)
    shared.clear(warn=False)
    after = {path: path.stat().st_mtime_ns for path in before if path.exists()}
    assert after == before
    assert len(local.store_backend.get_items()) == 1


@pytest.mark.parametrize(
    "order",
    [
        "import joblib, joblib_ext",
        "import joblib_ext, joblib",
        "import mlops_ext; mlops_ext.apply('joblib'); import joblib",
    ],
)
def test_importing_the_extension_makes_the_backend_known(tmp_path, order):
    code = f"{order}\nprint(joblib.Memory({str(tmp_path)!r}, backend='shared').store_backend)"
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert out.startswith("SharedStoreBackend")


def test_importing_the_extension_does_not_import_joblib():
    code = (
        "import sys, joblib_ext, joblib_ext.plugin, joblib_ext.cli; print('joblib' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


def test_a_command_run_by_mlops_ext_knows_the_backend(tmp_path):
    code = f"import joblib; print(joblib.Memory({str(tmp_path)!r}, backend='shared').store_backend)"
    bare = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert bare.returncode != 0
    tool = Path(sys.executable).with_name("mlops-ext")
    for extra in ([], ["--patch", "joblib"]):
        out = subprocess.check_output(
            [tool, "run", *extra, "--", sys.executable, "-c", code], text=True
        )
        assert out.startswith("SharedStoreBackend")


@pytest.mark.parametrize(
    "first",
    [
        "from joblib_ext import SharedStoreBackend as s",
        "import joblib_ext.backend; s = joblib_ext.backend.SharedStoreBackend",
    ],
)
def test_the_backend_can_be_imported_before_joblib(tmp_path, first):
    code = f"""{first}
from joblib import Memory
memory = Memory({str(tmp_path)!r}, backend="shared", verbose=0)
print(type(memory.store_backend) is s, memory.cache(abs)(-1))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "True 1\n", done.stderr


def run_model(folder, cache, source, expression, before=""):
    """What *expression* gives in a process that imports *source* as ``model``."""
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(textwrap.dedent(source))
    code = f"""
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {str(folder)!r})
import joblib_ext, model, functools
from joblib import Memory
memory = Memory({str(cache)!r}, backend="shared", verbose=0)
{textwrap.dedent(before)}
print({expression})
"""
    return subprocess.check_output([sys.executable, "-B", "-c", code], text=True).strip()


def test_the_code_that_runs_decides_not_the_text_on_disk(tmp_path):
    """A process imported one version, and the file became another before the first call."""
    rewrite = """
        from pathlib import Path
        file = Path(model.__file__)
        file.write_text(file.read_text().replace("'A'", "'B'"))
    """
    source = "def f(x):\n    return 'A', x\n"
    where = tmp_path / "code", tmp_path / "cache"
    assert run_model(*where, source, "memory.cache(model.f)(1)", rewrite) == "('A', 1)"
    assert run_model(*where, source.replace("A", "B"), "memory.cache(model.f)(1)") == "('B', 1)"


DECORATED = """
    import functools
    def timed(f):
        @functools.wraps(f)
        def inner(*args, **kwargs):
            return f(*args, **kwargs)
        return inner
    @timed
    @timed
    def f(x):
        return "VERSION", x
    partial = functools.partial(f)
    class Called:
        def __init__(self, factor):
            self.factor = factor
        def __call__(self, x):
            return "VERSION", x * self.factor
    called = Called(1)
    def plainly(f):
        def inner(*args):
            return f(*args)
        return inner
    def tagged(tag):
        return lambda f: lambda x: (tag, f(x)[1])
    def other(x):
        return "VERSION", x
    plainly_decorated = plainly(other)
    by_argument = tagged("VERSION")(lambda x: ("", x))
    remembered = functools.lru_cache(other)
    class Pair(tuple):
        def __new__(cls, x):
            return ("VERSION", x)
"""
KINDS = ["f", "partial", "called", "plainly_decorated", "by_argument", "remembered", "Pair"]


@pytest.mark.parametrize("what", [f"model.{kind}" for kind in KINDS])
def test_what_is_wrapped_or_called_has_versions_too(tmp_path, what):
    for version in ("one", "two", "one"):
        source = DECORATED.replace("VERSION", version)
        where = tmp_path / version, tmp_path / "cache"
        assert run_model(*where, source, f"memory.cache({what})(1)") == f"('{version}', 1)"
    namespaces = list((tmp_path / "cache").rglob("items/*/*"))
    assert len(namespaces) == 2  # not one for each process


def test_the_state_of_a_callable_object_and_the_arguments_of_a_partial_count(tmp_path):
    where = tmp_path / "code", tmp_path / "cache"
    expression = "[memory.cache(model.Called(factor))(2)[1] for factor in (1, 2, 3)]"
    assert run_model(*where, DECORATED, expression) == "[2, 4, 6]"
    expression = "[memory.cache(functools.partial(pow, base))(2) for base in (1, 2, 3)]"
    assert run_model(*where, DECORATED, expression) == "[1, 4, 9]"


def test_functions_that_one_function_makes_do_not_mix(tmp_path):
    """They have one name and one code, and hold other values, or other functions."""
    memory = Memory(str(tmp_path), backend="shared", verbose=0)

    def times(factor):
        def multiply(x):
            return factor * x

        return multiply

    def then(function):
        return lambda x: function(x)  # noqa: PLW0108  # a code of its own

    def recursive(stop):
        def count(x):
            return x if x >= stop else cached(x + 1)

        cached = memory.cache(count)
        return cached

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = [memory.cache(times(factor)) for factor in (1, 2, (3,))]
        assert [function(2) for function in made] == [2, 4, (3, 3)]
        made = [memory.cache(then(times(factor))) for factor in (1, 2)]
        assert [function(2) for function in made] == [2, 4]
        assert [recursive(stop)(1) for stop in (3, 5)] == [3, 5]


METHODS = '''
    def closure(number):
        def inner(x):
            text = """two
              lines"""
            return number, x, len(text)
        return inner
    class Base:
        __secret = 5
        def method(self, x):
            super().__init__()
            return self.__secret + x
        @staticmethod
        def static(x, *, factor=2, **more):
            return [y * factor for y in range(x)]
'''


def test_the_text_stands_for_code_of_every_kind(tmp_path):
    """Then entries are shared by processes of different Pythons."""
    code = "__import__('joblib_ext.versions').versions._compiles_to"
    text = "__import__('joblib').func_inspect.get_func_code"
    functions = "(model.closure, model.closure(1), model.Base.method, model.Base.static)"
    expression = f"[{code}({text}(f)[0], f) for f in {functions}]"
    found = run_model(tmp_path / "code", tmp_path / "cache", METHODS, expression)
    assert found == "[True, True, True, True]"


def test_declared_helpers_and_a_version_are_part_of_the_code(tmp_path):
    memory = Memory(str(tmp_path), backend="shared", verbose=0)
    calls = []

    def helper(x):
        return x

    def other(x):
        return -x

    def function(x):
        calls.append(x)
        return helper(x)

    def call(**more):
        return joblib_ext.cache(memory, function, **more)(1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for more in ({}, {"depends": [helper]}, {"depends": [other]}, {"version": "2"}):
            assert call(**more) == call(**more) == 1
    assert len(calls) == 4
    again = pickle.loads(pickle.dumps(joblib_ext.cache(memory, abs, version="2")))
    assert again.code_version == "2"
