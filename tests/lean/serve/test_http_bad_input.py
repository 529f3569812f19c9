"""Every bad body gets a 4xx with one clear line that names the field, and the next request is right."""

import json

import pytest

OVER = 2**63


def check(service, response, status, param, words):
    """The error document is OpenAI's, and the service still answers."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert words in error["message"]
    assert "\n" not in error["message"] and len(error["message"]) < 300
    assert service.complete("hello", max_tokens=3, temperature=0).json()["usage"]["completion_tokens"] == 3


@pytest.fixture(scope="module")
def service(shared_service):
    """One service for the whole table: no row may harm the next."""
    return shared_service


BODIES = {
    "empty": (b"", "empty"),
    "only spaces": (b"  \n", "empty"),
    "not JSON": (b"prompt=hello", "not JSON"),
    "cut off": (b'{"prompt": "hel', "not JSON"),
    "two documents": (b"{} {}", "not JSON"),
    "trailing comma": (b'{"prompt": "a",}', "not JSON"),
    "single quotes": (b"{'prompt': 'a'}", "not JSON"),
    "a list": (b"[1]", "expected a JSON object, got list"),
    "a string": (b'"hello"', "expected a JSON object, got str"),
    "null": (b"null", "expected a JSON object"),
    "NaN": (b'{"prompt": "a", "temperature": NaN}', "NaN is not a JSON number"),
    "Infinity": (b'{"prompt": "a", "temperature": Infinity}', "Infinity is not a JSON number"),
    "minus Infinity": (b'{"prompt": "a", "top_p": -Infinity}', "-Infinity is not a JSON number"),
    "a duplicate field": (b'{"prompt": "a", "prompt": "b"}', "duplicate key 'prompt'"),
    "invalid UTF-8": (b'{"prompt": "\xff\xfe"}', "not UTF-8"),
    "half a character": (b'{"prompt": "\xe2\x82"}', "not UTF-8"),
    "UTF-16": ('{"prompt": "a"}'.encode("utf-16"), "not UTF-8"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "not JSON"),
    "a control character": (b'{"prompt": "a\x00b"}', "not JSON"),
    "nested lists": (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested deeper"),
    "nested objects": (b'{"a": ' * 50_000 + b"1" + b"}" * 50_000, "nested deeper"),
    "nested and cut off": (b"[" * 500_000, "nested deeper"),
    "a number of 5000 digits": (b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}", "4300 digits"),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_body_that_is_not_one_json_object_is_refused(service, name, path):
    body, words = BODIES[name]
    response = service.client.post(path, content=body, headers={"content-type": "application/json"})
    check(service, response, 400, None, words)


COMPLETIONS = {
    "no prompt": ({"prompt": None}, "prompt", "required"),
    "an empty prompt": ({"prompt": ""}, "prompt", "empty"),
    "no token ids": ({"prompt": []}, "prompt", "empty"),
    "an empty prompt in a list": ({"prompt": [""]}, "prompt", "empty"),
    "a number for a prompt": ({"prompt": 7}, "prompt", "expected a string or a list of token ids"),
    "an object for a prompt": ({"prompt": {"text": "a"}}, "prompt", "expected a string"),
    "several prompts": ({"prompt": ["a", "b"]}, "prompt", "one prompt per request"),
    "several lists of ids": ({"prompt": [[1], [2]]}, "prompt", "one prompt per request"),
    "ids and text mixed": ({"prompt": [1, "b"]}, "prompt", "one prompt per request"),
    "ids that are not whole": ({"prompt": [1, 2.0]}, "prompt", "expected a string or a list of token ids"),
    "ids that are truth values": ({"prompt": [True]}, "prompt", "expected a string or a list of token ids"),
    "an id past the vocabulary": ({"prompt": [1, 259]}, "prompt", "expected 0 to 258"),
    "a negative id": ({"prompt": [-1]}, "prompt", "expected 0 to 258"),
    "a huge id": ({"prompt": [OVER]}, "prompt", "expected 0 to 258"),
    "a surrogate alone": ({"prompt": "a\ud800"}, "prompt", "unpaired surrogate"),
    "an over-long prompt": ({"prompt": "x" * 600}, "prompt", "600 tokens leave no room"),
    "an over-long list of ids": ({"prompt": [1] * 512}, "prompt", "512 tokens leave no room"),
    "max_tokens -1": ({"max_tokens": -1}, "max_tokens", "expected 1 to"),
    "max_tokens 0": ({"max_tokens": 0}, "max_tokens", "expected 1 to"),
    "max_tokens 2^63": ({"max_tokens": OVER}, "max_tokens", "expected 1 to"),
    "max_tokens past the slot": ({"max_tokens": 508}, "max_tokens", "at most 507"),
    "max_tokens as text": ({"max_tokens": "16"}, "max_tokens", "expected an integer, got '16'"),
    "max_tokens as a fraction": ({"max_tokens": 16.0}, "max_tokens", "expected an integer"),
    "max_tokens true": ({"max_tokens": True}, "max_tokens", "expected an integer, got True"),
    "min_tokens over max_tokens": ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "more than max_tokens"),
    "min_tokens negative": ({"min_tokens": -1}, "min_tokens", "expected 0 to"),
    "temperature negative": ({"temperature": -0.1}, "temperature", "expected 0 to 2"),
    "temperature absurd": ({"temperature": 1e300}, "temperature", "expected 0 to 2"),
    "temperature as a huge integer": ({"temperature": 10**400}, "temperature", "an integer of"),
    "temperature as text": ({"temperature": "hot"}, "temperature", "expected a number"),
    "temperature as a list": ({"temperature": [1]}, "temperature", "expected a number, got an array"),
    "top_p 0": ({"top_p": 0}, "top_p", "more than 0, at most 1"),
    "top_p over 1": ({"top_p": 1.01}, "top_p", "more than 0, at most 1"),
    "top_k -2": ({"top_k": -2}, "top_k", "expected -1 to"),
    "top_k as a fraction": ({"top_k": 0.5}, "top_k", "expected an integer"),
    "seed 2^63": ({"seed": OVER}, "seed", "expected"),
    "seed as text": ({"seed": "x"}, "seed", "expected an integer"),
    "stop as a number": ({"stop": 3}, "stop", "expected a string or a list of strings"),
    "stop holding a number": ({"stop": ["a", 3]}, "stop", "expected a string or a list of strings"),
    "an empty stop string": ({"stop": ["a", ""]}, "stop", "1 to 256 characters"),
    "too many stop strings": ({"stop": ["a"] * 17}, "stop", "at most 16"),
    "a long stop string": ({"stop": "a" * 257}, "stop", "1 to 256 characters"),
    "a stop string of half a character": ({"stop": "\udfff"}, "stop", "unpaired surrogate"),
    "stream as text": ({"stream": "yes"}, "stream", "expected true or false"),
    "stream options without stream": ({"stream_options": {}}, "stream_options", "only with stream=true"),
    "stream options as a list": ({"stream": True, "stream_options": []}, "stream_options", "an object"),
    "an unknown stream option": (
        {"stream": True, "stream_options": {"x": 1}},
        "stream_options.x",
        "unknown field",
    ),
    "logprobs true": ({"logprobs": True}, "logprobs", "expected an integer"),
    "logprobs 21": ({"logprobs": 21}, "logprobs", "expected 0 to 20"),
    "n 2": ({"n": 2}, "n", "only n=1"),
    "n true": ({"n": True}, "n", "only n=1"),
    "best_of 2": ({"best_of": 2}, "best_of", "only best_of=1"),
    "echo": ({"echo": True}, "echo", "not supported"),
    "a suffix": ({"suffix": "end"}, "suffix", "not supported"),
    "a presence penalty": ({"presence_penalty": 0.5}, "presence_penalty", "only 0"),
    "a frequency penalty": ({"frequency_penalty": 2}, "frequency_penalty", "only 0"),
    "a repetition penalty": ({"repetition_penalty": 1.2}, "repetition_penalty", "only 1"),
    "a logit bias": ({"logit_bias": {"5": 100}}, "logit_bias", "not supported"),
    "an unknown field": ({"prompt_strength": 3}, "prompt_strength", "unknown field 'prompt_strength'"),
    "ignore_eos as a number": ({"ignore_eos": 1}, "ignore_eos", "expected true or false"),
    "no model": ({"model": None}, "model", "required"),
    "model as a number": ({"model": 3}, "model", "expected a string"),
}


@pytest.mark.parametrize("name", COMPLETIONS)
def test_a_bad_completion_is_refused_by_field(service, name):
    fields, param, words = COMPLETIONS[name]
    body = json.dumps({"model": "tiny", "prompt": "hello", **fields})
    check(service, service.client.post("/v1/completions", content=body), 400, param, words)


def user(content):
    return {"messages": [{"role": "user", "content": content}]}


CHATS = {
    "no messages": ({"messages": None}, "messages", "required"),
    "an empty list": ({"messages": []}, "messages", "empty"),
    "messages as text": ({"messages": "hi"}, "messages", "expected a list"),
    "a message as text": ({"messages": ["hi"]}, "messages[0]", "expected an object"),
    "no role": ({"messages": [{"content": "a"}]}, "messages[0].role", "required"),
    "an unknown role": (
        {"messages": [{"role": "root", "content": "a"}]},
        "messages[0].role",
        "one of system",
    ),
    "role as a number": (
        {"messages": [{"role": 1, "content": "a"}]},
        "messages[0].role",
        "expected a string",
    ),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
    "content as a number": (user(5), "messages[0].content", "expected a string or a list of text parts"),
    "no parts": (user([]), "messages[0].content", "expected a string or a list of text parts"),
    "a picture": (user([{"type": "image_url"}]), "messages[0].content", "only parts of type text"),
    "a part as text": (user(["hi"]), "messages[0].content", "only parts of type text"),
    "a part without text": (user([{"type": "text"}]), "messages[0].content[0].text", "required"),
    "half a character": (user("\ud83d"), "messages[0].content", "unpaired surrogate"),
    "an unknown field in a message": (
        {"messages": [{"role": "user", "content": "a", "weight": 1}]},
        "messages[0].weight",
        "unknown field",
    ),
    "an over-long chat": (user("x" * 600), "messages", "leave no room"),
    "tools": ({**user("a"), "tools": [{"type": "function"}]}, "tools", "not supported"),
    "a JSON format": ({**user("a"), "response_format": {"type": "json_object"}}, "response_format", "only"),
    "top_logprobs alone": ({**user("a"), "top_logprobs": 2}, "top_logprobs", "needs logprobs"),
    "logprobs as a number": ({**user("a"), "logprobs": 2}, "logprobs", "expected true or false"),
    "two different limits": (
        {**user("a"), "max_tokens": 3, "max_completion_tokens": 4},
        "max_completion_tokens",
        "disagree",
    ),
    "a prompt": ({**user("a"), "prompt": "hi"}, "prompt", "unknown field"),
}


@pytest.mark.parametrize("name", CHATS)
def test_a_bad_chat_is_refused_by_field(service, name):
    fields, param, words = CHATS[name]
    body = json.dumps({"model": "tiny", **fields})
    check(service, service.client.post("/v1/chat/completions", content=body), 400, param, words)


def test_another_model_is_not_found(service):
    check(service, service.complete("hello", model="gpt-4"), 404, "model", "use 'tiny'")


def test_a_field_name_of_a_megabyte_is_not_repeated_in_the_error(service):
    response = service.complete("hello", **{"x" * 900_000: 1})
    assert response.status_code == 400
    assert len(response.content) < 500


def test_a_body_over_the_limit_is_refused_with_413(service):
    response = service.client.post("/v1/completions", content=b" " * (1024 * 1024 + 1))
    check(service, response, 413, None, "longer than 1048576 bytes")


def test_a_long_prompt_text_within_the_body_limit_is_counted_and_refused(service):
    check(service, service.complete("x" * 1_000_000), 400, "prompt", "1000000 tokens leave no room")


@pytest.mark.parametrize("path", ["/", "/v1", "/v2/completions", "/v1/completions/", "/v1/completions/x"])
def test_an_unknown_route_is_a_404_in_the_same_form(service, path):
    check(service, service.client.post(path, json={}), 404, None, "Not Found")


@pytest.mark.parametrize(
    "method, path", [("GET", "/v1/completions"), ("POST", "/health"), ("DELETE", "/v1/models")]
)
def test_a_wrong_method_is_a_405_in_the_same_form(service, method, path):
    response = service.client.request(method, path)
    check(service, response, 405, None, "Method Not Allowed")
    assert response.headers["allow"]


def test_a_huge_path_is_repeated_only_in_part(service):
    assert len(service.client.get("/" + "x" * 10_000).content) < 500
