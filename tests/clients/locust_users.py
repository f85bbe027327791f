"""Two users as people write them, with locust's own client and with that of requests."""

from locust import FastHttpUser, HttpUser, TaskSet, constant, task

ROW = list(range(16))
REQUEST = {"inputs": [{"name": f"INPUT{n}", "shape": [1, 16], "datatype": "INT32", "data": ROW} for n in range(2)]}
REFUSED = {"inputs": REQUEST["inputs"][:1]}


class Requests(TaskSet):
    @task(8)
    def infer(self):
        with self.client.post("/v2/models/simple/infer", json=REQUEST, catch_response=True) as answer:
            if answer.json()["outputs"][0]["data"] != [2 * n for n in ROW]:
                answer.failure("wrong sums")

    @task
    def ask(self):
        self.client.get("/v2/health/ready")
        self.client.get("/v2/models/simple")

    @task
    def be_refused(self):
        with self.client.post("/v2/models/simple/infer", json=REFUSED, name="refused", catch_response=True) as answer:
            if answer.status_code == 400 and "expected 2 inputs but got 1" in answer.json()["error"]:
                answer.success()


class Fast(FastHttpUser):
    wait_time = constant(0)
    tasks = (Requests,)


class Plain(HttpUser):
    wait_time = constant(0)
    tasks = (Requests,)
