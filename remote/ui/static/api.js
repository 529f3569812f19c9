// The page's own server. A failure carries the message that the command line would have shown.

export class Failure extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function ask(path, { post, signal } = {}) {
  const request = { signal };
  if (post !== undefined) {
    request.method = "POST";
    request.headers = { "content-type": "application/json" };
    request.body = JSON.stringify(post);
  }
  let response;
  try {
    response = await fetch(path, request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, "the page’s server does not answer; start it again with: invoke ui");
  }
  if (!response.ok) throw new Failure(response.status, await message(response));
  return response;
}

export async function get(path) {
  return (await ask(path)).json();
}

export async function post(path, document = {}) {
  return (await ask(path, { post: document })).json();
}

async function message(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the page’s server answered ${response.status}`;
  }
}
