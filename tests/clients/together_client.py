"""Together's client."""

import base64

import together


def check(server):
    client = together.Together(api_key="none", base_url=server.url, max_retries=0)
    arguments = {"prompt": "a fox", "steps": 4, "seed": 5, "width": 128, "height": 128}
    reference = server.drawn("a fox", "--seed", "5", "--steps", "4")
    answer = client.images.generate(
        model="black-forest-labs/FLUX-tiny-Free", response_format="base64", **arguments)
    assert base64.b64decode(answer.data[0].b64_json) == reference
    answer = client.images.generate(model="flux-tiny", response_format="url", **arguments)
    assert answer.data[0].url.startswith(server.url)
    start = "data:image/png;base64," + base64.b64encode(reference).decode()
    answer = client.images.generate(model="flux-tiny", image_url=start, **arguments)
    assert base64.b64decode(answer.data[0].b64_json) != reference
    try:
        client.images.generate(model="flux-tiny", reference_images=[start], **arguments)
    except together.UnprocessableEntityError as error:
        assert "reference_images" in str(error), error
    else:
        raise AssertionError("reference_images was not refused")
