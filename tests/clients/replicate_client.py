"""Replicate's client: run, wait, poll, cancel, errors."""

import base64
import os
import time

os.environ["REPLICATE_API_TOKEN"] = "none"

import replicate
from replicate.exceptions import ReplicateError


def check(server):
    client = replicate.Client(api_token="none", base_url=server.url)
    image = {"prompt": "a fox", "num_inference_steps": 4, "seed": 5, "output_format": "png"}
    reference = server.drawn("a fox", "--seed", "5", "--steps", "4")
    model = "black-forest-labs/flux-tiny"
    files = client.run(model, input=image)
    assert [file.read() for file in files] == [reference]
    urls = client.run(model, input=image, use_file_output=False, wait=False)
    assert base64.b64decode(urls[0].split(",")[1]) == reference

    long = {"prompt": "a fox", "num_inference_steps": 1000, "num_outputs": 8}
    prediction = client.models.predictions.create(model=model, input=long)
    assert prediction.status == "starting"
    prediction.cancel()
    for _ in range(600):
        prediction.reload()
        if prediction.status == "canceled":
            break
        time.sleep(0.1)
    assert prediction.status == "canceled", prediction
    assert prediction.id in [p.id for p in client.predictions.list().results]

    for name, arguments, status in [
        ("black-forest-labs/nothing", image, 404),
        (model, {"prompt": "a fox", "width": 100}, 422),
        (model, {"prompt": "a fox", "mask": "data:image/png;base64,aGk="}, 422),
    ]:
        try:
            client.run(name, input=arguments)
        except ReplicateError as error:
            assert error.status == status and error.detail, error
        else:
            raise AssertionError(f"{arguments} was not refused")
