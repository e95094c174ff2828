"""The client of Black Forest Labs: submit, poll, download, errors."""

import requests
from blackforest import BFLClient
from blackforest.client import BFLError
from blackforest.types.general.client_config import ClientConfig


def check(server):
    client = BFLClient(api_key="none", base_url=server.url)
    inputs = {"prompt": "a fox", "width": 256, "height": 256, "seed": 5, "output_format": "png"}
    config = ClientConfig(sync=True, polling_interval=1, timeout=120)
    answer = client.generate("flux-pro-1.1", inputs, config)
    assert answer.result["seed"] == 5 and answer.result["prompt"] == "a fox"
    drawn = requests.get(answer.result["sample"], timeout=60).content
    assert drawn == server.drawn("a fox", "--size", "256x256", "--seed", "5")

    task = client.generate("flux-pro-1.1", inputs)
    assert task.polling_url.startswith(server.url)
    assert client.get_task_status(task.id).status in ["Pending", "Ready"]
    try:
        client.generate("flux-dev", inputs)
    except BFLError as error:
        assert "flux-tiny" in str(error), error
    else:
        raise AssertionError("a model that is not there was drawn with")
