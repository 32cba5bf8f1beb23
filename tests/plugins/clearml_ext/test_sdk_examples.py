"""Scripts with the calls of the SDK's own examples: checked, with the verdict that they deserve.

The SDK's package does not carry its examples, so the scripts are our own; what they call, and in
which order, is what the examples call.
"""

import json

import pytest
from tests.doubles.clearml.lab import Lab

pytest.importorskip("clearml")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FROM_TASKS = """
from clearml import Task
from clearml.automation import PipelineController

def before(pipeline, node, parameters):
    return True

def after(pipeline, node):
    print(node.executed)

pipe = PipelineController(
    name="Pipeline demo", project="examples", version="0.0.1", add_pipeline_tags=False)
pipe.add_parameter("url", "https://example.org/iris.pkl", "dataset_url")
pipe.set_default_execution_queue("default")
pipe.add_step(
    name="stage_data", base_task_project="examples", base_task_name="step one",
    parameter_override={"General/dataset_url": "${pipeline.url}"})
pipe.add_step(
    name="stage_process", parents=["stage_data"], base_task_project="examples",
    base_task_name="step two", pre_execute_callback=before, post_execute_callback=after,
    parameter_override={"General/dataset_url": "${stage_data.artifacts.dataset.url}"})
pipe.add_step(
    name="stage_train", parents=["stage_process"], base_task_project="examples",
    base_task_name="step three",
    parameter_override={"General/dataset_task_id": "${stage_process.id}"})
pipe.start()
"""
FROM_FUNCTIONS = """
from clearml import PipelineController

def one(pickle_data_url):
    return [pickle_data_url]

def two(data_frame, test_size=0.2):
    return data_frame, test_size

def three(data):
    return len(data)

if __name__ == "__main__":
    pipe = PipelineController(
        project="examples", name="Pipeline demo", version="1.1", add_pipeline_tags=False)
    pipe.set_default_execution_queue("default")
    pipe.add_parameter(name="url", description="url", default="https://example.org/iris.pkl")
    pipe.add_function_step(
        name="step_one", function=one, function_kwargs=dict(pickle_data_url="${pipeline.url}"),
        function_return=["data_frame"], cache_executed_step=True)
    pipe.add_function_step(
        name="step_two", function=two, function_kwargs=dict(data_frame="${step_one.data_frame}"),
        function_return=["processed_data"], cache_executed_step=True)
    pipe.add_function_step(
        name="step_three", function=three, function_kwargs=dict(data="${step_two.processed_data}"),
        function_return=["model"], cache_executed_step=True)
    pipe.start()
"""
FROM_DECORATOR = """
from clearml import TaskTypes
from clearml.automation.controller import PipelineDecorator

@PipelineDecorator.component(
    return_values=["frame"], cache=True, task_type=TaskTypes.data_processing)
def one(url: str, extra: int = 43):
    return [url]

@PipelineDecorator.component(return_values=["model"], cache=True, task_type=TaskTypes.training)
def two(frame):
    return len(frame)

@PipelineDecorator.pipeline(name="custom logic", project="examples", version="0.0.5")
def run(url, mock="mock"):
    print("returned", two(one(url)))

if __name__ == "__main__":
    {where}
    run(url="https://example.org/iris.pkl")
"""
OPTIMIZER = """
import argparse
from clearml import Task
from clearml.automation import (
    DiscreteParameterRange, HyperParameterOptimizer, RandomSearch, UniformIntegerParameterRange)

parser = argparse.ArgumentParser()
parser.add_argument("--template_task_id", default=None)
parser.add_argument("--run_as_service", action="store_true", default={service})
args = parser.parse_args()
task = Task.init(
    project_name="Hyper-Parameter Optimization", task_name="Automatic Optimization",
    task_type=Task.TaskTypes.optimizer, reuse_last_task_id=False)
if not args.template_task_id:
    args.template_task_id = Task.get_task(project_name="examples", task_name="step one").id
optimizer = HyperParameterOptimizer(
    base_task_id=args.template_task_id,
    hyper_parameters=[
        UniformIntegerParameterRange("General/layer_1", min_value=128, max_value=512, step_size=128),
        DiscreteParameterRange("General/epochs", values=[30])],
    objective_metric_title="epoch_accuracy", objective_metric_series="epoch_accuracy",
    objective_metric_sign="max", max_number_of_concurrent_tasks=2, optimizer_class=RandomSearch,
    execution_queue="default", time_limit_per_job=10.0, pool_period_min=0.2, total_max_jobs=10,
    min_iteration_per_job=10, max_iteration_per_job=30)
if args.run_as_service:
    task.execute_remotely(queue_name="services", exit_process=True)
optimizer.set_report_period(0.2)
optimizer.start()
optimizer.set_time_limit(in_minutes=120.0)
optimizer.wait()
optimizer.stop()
"""
SCHEDULER = """
from clearml import Task
from clearml.automation import TaskScheduler

def tick():
    print("done")

scheduler = TaskScheduler()
scheduler.add_task(
    name="recurring job", queue="default", minute=30, hour=10, day=1, recurring=True,
    schedule_task_id=Task.get_task(project_name="examples", task_name="step one"))
scheduler.add_task(
    name="workdays", schedule_function=tick, minute=30, hour=2, weekdays=["monday"],
    recurring=True)
scheduler.{start}
"""
TRIGGER = """
from clearml import Model
from clearml.automation import TriggerScheduler

def changed(model_id):
    print(Model(model_id=model_id).id)

if __name__ == "__main__":
    trigger = TriggerScheduler(pooling_frequency_minutes=1.0)
    trigger.add_model_trigger(
        name="deploy", schedule_function=changed, trigger_project="examples",
        trigger_on_tags=["deploy"])
    trigger.add_model_trigger(
        name="quality check", schedule_task_id="BASE", schedule_queue="default",
        trigger_project="examples", trigger_on_tags=["deploy"])
    trigger.start_remotely()
"""
EXAMPLES = {
    "pipeline_from_tasks": (FROM_TASKS, "unsafe"),
    "pipeline_from_functions": (FROM_FUNCTIONS, "unsafe"),
    "pipeline_from_decorator_here": (
        FROM_DECORATOR.format(where="PipelineDecorator.run_locally()"), "safe"),
    "pipeline_from_decorator_on_agents": (
        FROM_DECORATOR.format(
            where='PipelineDecorator.set_default_execution_queue("default")'), "unsafe"),
    "hyper_parameter_optimizer_as_a_service": (OPTIMIZER.format(service=True), "unsafe"),
    "hyper_parameter_optimizer_here": (OPTIMIZER.format(service=False), "safe"),
    "scheduler_on_an_agent": (
        SCHEDULER.format(start="start_remotely(queue='services')"), "unsafe"),
    "trigger": (TRIGGER, "unsafe"),
}  # fmt: skip


@pytest.fixture
def lab(tmp_path):
    with Lab(tmp_path, ["default", "services"]) as lab:
        project = lab.store.projects_create({"name": "examples"})["id"]
        for name in ("step one", "step two", "step three"):
            lab.store.tasks_create(
                {"name": name, "project": project, "script": {"entry_point": "train.py"}}
            )
        yield lab


def listen(lab, name, *queues):
    numbers = [n for n, row in lab.store.queues.items() if row["name"] in queues]
    lab.store.workers_register({"worker": name, "queues": numbers})


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_judged_by_the_agents_there_are_and_nothing_of_it_runs(lab, example):
    text, on_one_agent = EXAMPLES[example]
    base = next(iter(lab.store.tasks))
    script = lab.folder / f"{example}.py"
    script.write_text(text.replace("BASE", base))
    kept = json.dumps(lab.store.tasks, default=str, sort_keys=True)
    listen(lab, "one", "default", "services")
    for expected in (on_one_agent, "safe"):
        result = lab.cli("check", "--json", script, MLOPS_EXT_CLEARML_CHECK_TIMEOUT_S="200")
        found = json.loads(result.stdout)
        assert found["verdict"] == expected, (found, result.stderr)
        assert json.dumps(lab.store.tasks, default=str, sort_keys=True) == kept
        if expected == "safe":
            break
        del lab.store.workers["one"]
        listen(lab, "controllers", "services")
        listen(lab, "steps", "default")
