"""Scripts that are checked: nothing they do reaches the server; and what a refusal may delete."""

import json

import pytest
import requests
from tests.doubles.clearml.arrange import add_controller, add_worker, client_of, put_step
from tests.doubles.clearml.lab import Lab
from tests.doubles.clearml.server import ACCESS_KEY, SECRET_KEY

from clearml_ext.check.dry_run import PretendedServer, is_read, serve
from clearml_ext.check.plans import plan_of_task

pytest.importorskip("clearml")

pytestmark = pytest.mark.timeout(600)

QUIET = "auto_connect_frameworks=False, auto_resource_monitoring=False, reuse_last_task_id=False"
HEAD = f"""
import pathlib, sys
from clearml import PipelineController, PipelineDecorator, Task
MARK = pathlib.Path("step-ran")
def step(a=1):
    import pathlib
    pathlib.Path("step-ran").write_text("ran")
    return a
def make(name, queue):
    made = PipelineController(name=name, project="lab", version="1.0", add_pipeline_tags=False,
                              packages=[], pool_frequency=0.01)
    made.add_function_step("leaf", step, packages=[], execution_queue=queue, function_return=["x"])
    return made
def own_task(**more):
    return Task.init("lab", "three days of training", {QUIET}, **more)
"""
DECORATED = """
@PipelineDecorator.component(return_values=["y"], packages=[], cache=False)
def one(a):
    import pathlib
    pathlib.Path("step-ran").write_text("ran")
    return a
@PipelineDecorator.pipeline(name="nightly", project="lab", version="1.0", default_queue="default",
                            add_pipeline_tags=False, packages=[], pool_frequency=0.01)
def nightly(a=1):
    print(one(a))
"""
OPTIMIZER = """
from clearml.automation import DiscreteParameterRange, HyperParameterOptimizer, RandomSearch
def optimizer():
    return HyperParameterOptimizer(
        base_task_id=sys.argv[1], execution_queue="default", total_max_jobs=2, pool_period_min=0.01,
        hyper_parameters=[DiscreteParameterRange("Args/lr", values=[0.1, 0.2])],
        objective_metric_title="acc", objective_metric_series="val", objective_metric_sign="max",
        max_number_of_concurrent_tasks=1, optimizer_class=RandomSearch, max_iteration_per_job=1)
"""
WAYS = {
    "start": ("make('nightly', 'default').start(queue='services')", "unsafe"),
    "launch": (
        ("from clearml_ext import PipelineLauncher\n"
        "PipelineLauncher(make('nightly', 'default')).launch('services')"), "unsafe"),
    "start_locally": ("make('nightly', 'default').start_locally()", "safe"),
    "steps_here": (
        "make('nightly', 'default').start_locally(run_pipeline_steps_locally=True)", "safe"),
    "in_a_task_of_ones_own": (
        "own_task()\nmake('nightly', 'default').start(queue='services')", "unsafe"),
    "decorated": (f"{DECORATED}\nnightly()", "unsafe"),
    "decorated_here": (f"{DECORATED}\nPipelineDecorator.run_locally()\nnightly()", "safe"),
    "decorated_debugged": (f"{DECORATED}\nPipelineDecorator.debug_pipeline()\nnightly()", "safe"),
    "plain": ("own_task().execute_remotely(queue_name='default')\nstep()", "safe"),
    "before_its_pipeline_is_known": (
        ("own_task(task_type='controller').execute_remotely(queue_name='default')\n"
        "make('late', 'default').start()"), "unknown"),
    "declared": (
        ("from clearml_ext import waits_for\n"
        "own = own_task(task_type='controller')\nwaits_for('default')\n"
        "own.execute_remotely(queue_name='services')"), "unsafe"),
    "two_pipelines": (
        ("for name, queue in (('first', 'gpu'), ('second', 'nowhere')):\n"
        "    made = make(name, queue)\n    made.create_draft()\n"
        "    Task.enqueue(made._task, queue_name='services')\n    made._task.close()"), "unsafe"),
    "optimizer": (
        (f"{OPTIMIZER}\nown_task(task_type='optimizer')\nfound = optimizer()\n"
        "Task.current_task().execute_remotely(queue_name='services')"), "unsafe"),
    "optimizer_here": (
        (f"{OPTIMIZER}\nown_task(task_type='optimizer')\nfound = optimizer()\n"
        "found.start()\nfound.wait()"), "safe"),
    "scheduler": (
        ("from clearml.automation import TaskScheduler\n"
        "found = TaskScheduler(force_create_task_name='cron', force_create_task_project='lab')\n"
        "found.add_task(schedule_task_id=sys.argv[1], queue='default', minute=30, hour=1)\n"
        "found.start_remotely(queue='services')"), "unsafe"),
    "bare_request": (
        ("from clearml.backend_api.session.client import APIClient\n"
        "client = APIClient()\n"
        "queue = next(each.id for each in client.queues.get_all() if each.name == 'default')\n"
        "client.tasks.enqueue(task=sys.argv[1], queue=queue)"), "safe"),
    "many_in_one_request": (
        ("from clearml.backend_api.session.client import APIClient\n"
        "APIClient().tasks.enqueue_many(ids=[sys.argv[1]])"), "safe"),
    "clone": (
        "copied = Task.clone(sys.argv[1])\nTask.enqueue(copied, queue_name='default')", "safe"),
    "clone_of_a_pipeline": (
        "copied = Task.clone(sys.argv[2])\nTask.enqueue(copied, queue_name='services')", "unsafe"),
    "a_process_without_the_guard": (
        ("import subprocess\nbase = sys.argv[2]\nwords = 'from clearml import Task; '\n"
        "words += 'Task.enqueue(Task.clone(%r), queue_name=%r)' % (base, 'services')\n"
        "subprocess.run([sys.executable, '-I', '-c', words], check=True)"), "unsafe"),
    "a_request_of_ones_own": (
        ("import requests\nsession = Task._get_default_session()\n"
        "requests.post(session.host + '/tasks.enqueue', json={'task': sys.argv[1]},\n"
        "              headers={'Authorization': 'Bearer ' + session.token}).raise_for_status()"),
        "safe"),
    "forked": (
        ("import os\nchild = os.fork()\nif child == 0:\n"
        "    Task.enqueue(Task.clone(sys.argv[1]), queue_name='default')\n    os._exit(0)\n"
        "os.waitpid(child, 0)"), "safe"),
    "at_its_end": (
        ("import atexit, threading\n"
        "work = lambda: Task.enqueue(Task.clone(sys.argv[1]), queue_name='default')\n"
        "atexit.register(work)\nthread = threading.Thread(target=work)\n"
        "thread.start()\nthread.join()"), "safe"),
    "a_server_of_its_own": (
        ("import os\nos.environ.update(CLEARML_API_HOST='REAL', CLEARML_API_ACCESS_KEY='KEY',\n"
        "                  CLEARML_API_SECRET_KEY='SECRET')\n"
        "HEAD\nmake('nightly', 'default').start(queue='services')"), "unsafe"),
    "a_session_of_its_own": (
        ("from clearml.backend_api import Session\n"
        "own = Session(api_key='KEY', secret_key='SECRET', host='REAL')\n"
        "own.send_request('tasks', 'enqueue', json={'task': sys.argv[1], 'queue': 'default'})\n"
        "own.send_request('tasks', 'ping', json={'task': sys.argv[1]})"), "safe"),
    "a_model_and_a_dataset": (
        ("from clearml import Dataset, OutputModel\n"
        "pathlib.Path('data').mkdir()\npathlib.Path('data/a.txt').write_text('a')\n"
        "made = Dataset.create(dataset_name='numbers', dataset_project='lab')\n"
        "made.add_files('data')\nmade.upload()\nmade.finalize()\n"
        "model = OutputModel(task=own_task(), name='weights')\n"
        "model.update_weights('data/a.txt')\nmodel.publish()\n"
        "Task.current_task().execute_remotely(queue_name='default')"), "safe"),
    "spawned": (
        ("import multiprocessing\ndef work(base):\n"
        "    Task.enqueue(Task.clone(base), queue_name='services')\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    child = context.Process(target=work, args=(sys.argv[2],))\n"
        "    child.start()\n    child.join()"), "unsafe"),
    "another_program": (
        ("import os\nwords = 'from clearml import Task; '\n"
        "words += 'Task.enqueue(Task.clone(%r), queue_name=%r)' % (sys.argv[2], 'services')\n"
        "os.execv(sys.executable, [sys.executable, '-c', words])"), "unsafe"),
}  # fmt: skip


@pytest.fixture
def lab(tmp_path):
    with Lab(tmp_path, ["default", "services", "gpu"]) as lab:
        number = next(n for n, row in lab.store.queues.items() if row["name"] == "gpu")
        numbers = [
            n for n, row in lab.store.queues.items() if row["name"] in ("default", "services")
        ]
        lab.store.workers_register({"worker": "a1", "queues": numbers})
        lab.store.workers_register({"worker": "a2", "queues": [number]})
        yield lab


def base_task(lab):
    made = {"name": "template", "type": "training", "script": {"entry_point": "train.py"}}
    return lab.store.tasks_create(made)["id"]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_checked_script_creates_and_enqueues_nothing_whatever_it_does(lab, way):
    text, verdict = WAYS[way]
    base = base_task(lab)
    pipeline = add_controller(lab.double, "inner", {"trial": "default"})
    kept = json.dumps(lab.store.tasks, default=str, sort_keys=True)
    projects, queues = dict(lab.store.projects), json.dumps(lab.store.queues, default=str)
    values = {"sys.argv[1]": repr(base), "sys.argv[2]": repr(pipeline), "'REAL'": repr(lab.double.url),
              "'KEY'": repr(ACCESS_KEY), "'SECRET'": repr(SECRET_KEY)}  # fmt: skip
    text = text.replace("HEAD", HEAD) if "HEAD" in text else HEAD + text
    for name, value in values.items():
        text = text.replace(name, value)
    script = lab.folder / "script.py"
    script.write_text(f"{text}\n")
    result = lab.cli("check", "--json", script, MLOPS_EXT_CLEARML_CHECK_TIMEOUT_S="200")
    found = json.loads(result.stdout)
    assert found["verdict"] == verdict, (found, result.stderr)
    assert json.dumps(lab.store.tasks, default=str, sort_keys=True) == kept
    assert (lab.store.projects, json.dumps(lab.store.queues, default=str)) == (projects, queues)
    assert not (lab.folder / "step-ran").exists()
    assert lab.double.count("tasks.ping") == 0
    if way in ("start_locally", "steps_here"):
        assert "after a pipeline that runs here was not looked at" in found["notes"][-1]
    if way == "two_pipelines":
        assert any("nowhere" in reason for reason in found["reasons"])
    if way == "before_its_pipeline_is_known":
        assert "waits_for" in found["reasons"][0]


@pytest.mark.slow
def test_a_script_that_reaches_no_pipeline_is_given_up_in_time(lab):
    script = lab.folder / "script.py"
    script.write_text("import threading\nthreading.Event().wait()\n")
    result = lab.cli("check", script, MLOPS_EXT_CLEARML_CHECK_TIMEOUT_S="3")
    assert result.returncode == 2
    assert "enqueued no pipeline within 3 s" in result.stdout


EXPERIMENT = """
own = own_task(**{more})
own.upload_artifact("weights", dict(w=[1, 2, 3]), wait_on_upload=True)
own.flush(wait_for_uploads=True)
made = make("evaluate", "nowhere")
from clearml_ext import PipelineLauncher
PipelineLauncher(made).launch("services")
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["training", "controller", "continued"])
def test_a_refusal_leaves_an_experiment_of_the_user_alone(lab, kind):
    more = {"task_type": kind}
    if kind == "continued":
        project = lab.store.projects_create({"name": "lab"})["id"]
        fields = {"name": "yesterday", "type": "controller", "system_tags": ["pipeline"]}
        fields["project"] = project
        number = lab.store.tasks_create(fields)["id"]
        lab.store.tasks[number]["created"] = "2026-01-01T00:00:00+00:00"
        more = {"continue_last_task": number}
    result = lab.run(HEAD + EXPERIMENT.format(more=more))
    assert result.returncode == 1
    assert "was not launched" in result.stderr
    (task,) = lab.tasks()
    assert [each["key"] for each in task["execution"]["artifacts"]] == ["weights"]
    assert f"task {task['id']} is left as it is" in result.stderr
    assert lab.double.count("tasks.delete") == 0


@pytest.mark.integration
@pytest.mark.parametrize("before", ["", "Task.init(project_name='p', task_name='experiment')\n"])
def test_a_pipeline_owns_only_a_task_that_it_created(lab, before):
    text = "from clearml_ext.sdk import is_own_task\n" + before
    text += "print('OWN', is_own_task(make('evaluate', 'nowhere')))"
    assert f"OWN {not before}" in lab.run(HEAD + text).stdout


def test_a_refusal_deletes_the_task_that_was_made_for_the_launch(lab):
    text = "from clearml_ext import PipelineLauncher\n"
    text += "PipelineLauncher(make('evaluate', 'nowhere')).launch('services')"
    result = lab.run(HEAD + text)
    assert "was not launched" in result.stderr
    assert lab.tasks() == []


@pytest.mark.integration
def test_a_refusal_leaves_a_draft_that_the_script_made_before(lab):
    text = "made = make('evaluate', 'nowhere')\nmade.create_draft()\n"
    text += "Task.enqueue(made._task, queue_name='services')"
    result = lab.run(HEAD + text, patched=True)
    assert "was not launched" in result.stderr
    assert [task["status"] for task in lab.tasks()] == ["created"]


def test_what_is_not_known_to_read_counts_as_writing():
    assert is_read("tasks.get_all_ex")
    assert not is_read("queues.get_next_task")
    assert not is_read("tasks.brand_new_action")


def test_the_pretended_server_remembers_what_it_was_told():
    server = PretendedServer()
    number = server.answer("tasks.create", {"name": "nightly", "type": "controller"})["id"]
    server.answer("tasks.edit", {"task": number, "runtime": {"a": "1"}})
    entry = {"name": "Pipeline", "value": "{}"}
    server.answer("tasks.edit_configuration", {"task": number, "configuration": [entry]})
    server.answer("tasks.started", {"task": number})
    task = server.answer("tasks.get_by_id", {"task": number})["task"]
    assert (task["name"], task["status"], task["runtime"]) == ("nightly", "in_progress", {"a": "1"})
    assert task["configuration"]["Pipeline"] == entry
    assert server.answer("tasks.get_by_id", {"task": "0" * 32})["tasks"] == []
    clone = server.answer("tasks.clone", {"task": number, "new_task_name": "copy"})["id"]
    assert server.tasks[clone]["name"] == "copy"
    assert server.tasks[clone]["type"] == "controller"


def test_a_pretended_clone_of_a_run_that_ended_begins_anew_as_the_server_s_does(double):
    add_worker(double, "a1", "services")
    own = add_controller(double, "nightly", {}, queue="services", worker="a1")
    put_step(double, own, None)
    state = double.store.tasks[own]["configuration"]["Pipeline"]
    state["value"] = state["value"].replace('"job_id"', '"queue": "default", "executed"')
    server = PretendedServer(client_of(double))
    number = server.answer("v2.23/tasks.clone", {"task": own})["id"]
    server.answer("tasks.enqueue", {"task": number, "queue": "default"})
    (step,) = plan_of_task(server.tasks[number]).nodes
    assert not step.ended
    real = double.store.tasks[double.store.tasks_clone({"task": own})["id"]]
    (step,) = plan_of_task(real).nodes
    assert not step.ended
    assert server.enqueued == [(number, "default")]
    both = server.answer("tasks.get_all", {"id": [own, number]})["tasks"]
    assert {row["id"] for row in both} == {own, number}


def test_only_who_knows_the_address_is_answered_and_gets_no_token_that_the_server_takes(double):
    client = client_of(double)
    with serve(PretendedServer(client)) as address:
        root, _, secret = address.rpartition("/")
        for guess in (root, f"{root}/{secret[:-1]}x", f"{root}/é"):
            assert requests.post(f"{guess}/queues.get_all", json={}, timeout=30).status_code == 404
        answer = requests.post(f"{address}/v2.23/queues.get_all", json={}, timeout=30).json()
        assert [row["name"] for row in answer["data"]["queues"]]
        token = requests.post(f"{address}/auth.login", timeout=30).json()["data"]["token"]
    real = client.token()
    assert token.split(".")[:2] == real.split(".")[:2]
    assert token.split(".")[2] != real.split(".")[2]


AGENTS = """
workers: [{name: a1, queues: [services, default]}, {name: a2, queues: [gpu]}]
"""
WITHOUT = {
    "start": "unsafe",
    "launch": "unsafe",
    "decorated": "unsafe",
    "plain": "safe",
    "two_pipelines": "unsafe",
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WITHOUT)
def test_a_script_is_checked_against_written_agents_without_a_server(lab, way):
    (lab.folder / "script.py").write_text(f"{HEAD}{WAYS[way][0]}\n")
    (lab.folder / "agents.yaml").write_text(AGENTS)
    result = lab.cli(
        "check", "--json", "script.py", "--agents", "agents.yaml",
        MLOPS_EXT_CLEARML_CHECK_TIMEOUT_S="200", CLEARML_API_HOST="http://127.0.0.1:9",
        MLOPS_EXT_CLEARML_AGENTS="none.yaml",  # the command line wins
    )  # fmt: skip
    found = json.loads(result.stdout)
    assert found["verdict"] == WITHOUT[way], (found, result.stderr)
    assert lab.double.calls == []
    assert not (lab.folder / "step-ran").exists()


@pytest.mark.slow
def test_what_a_checked_script_comes_to_is_drawn_and_saved(lab):
    (lab.folder / "script.py").write_text(f"{HEAD}{WAYS['start'][0]}\n")
    result = lab.cli("check", "script.py", "--plot", "plan.svg", "--save", "plan.yaml")
    assert result.returncode == 1, result.stderr
    assert "nightly" in (lab.folder / "plan.svg").read_text()
    again = lab.cli("check", "--json", "plan.yaml")
    assert json.loads(again.stdout)["reasons"][0].startswith("nightly: controller holds a1")


ORDER = """
import os
from clearml_ext import PipelineLauncher
for name, queues in (("one", "services, default"), ("two", "services")):
    others = "" if name == "one" else ", {name: d, queues: [default]}"
    pathlib.Path(f"{name}.yaml").write_text(f"workers: [{{name: s, queues: [{queues}]}}{others}]")
made = make("nightly", "default")
def verdict(**more):
    return PipelineLauncher(made, **more).preflight("services").answer.value
said = [verdict()]
pathlib.Path("pyproject.toml").write_text('[tool.mlops-ext.clearml]\\nagents = "two.yaml"\\n')
said.append(verdict())
os.environ["MLOPS_EXT_CLEARML_AGENTS"] = "one.yaml"
said.append(verdict())
said.append(verdict(agents="two.yaml"))
print("SAID", *said)
sys.stdout.flush()
PipelineLauncher(made, agents="two.yaml").launch("services")
"""


@pytest.mark.slow
def test_agents_of_a_file_stand_for_the_server_s_in_a_launch_argument_first(lab):
    result = lab.run(HEAD + ORDER)
    assert "SAID unsafe safe unsafe safe" in result.stdout, result.stderr
    assert result.returncode == 0, result.stderr
    assert [task["status"] for task in lab.tasks(type="controller")] == ["queued"]
