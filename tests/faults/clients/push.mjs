// Pushes with the defaults of fetch and of node:http: node push.mjs KEY BODY PUSHES URL... prints each status.
import { request } from "node:http";

const [key, body, pushes, ...urls] = process.argv.slice(2);
const headers = { "X-API-Key": key, "Content-Type": "application/json" };

function streamed(url) {
  return new Promise((done, failed) => {
    const pushing = request(url, { method: "POST", headers }, (answer) => {
      answer.resume();
      answer.on("end", () => done(answer.statusCode));
    });
    pushing.on("error", failed);
    for (const character of body) pushing.write(character); // in chunks
    pushing.end();
  });
}

for (const url of urls) {
  for (let push = 0; push < Number(pushes); push++) {
    if (push % 2) {
      console.log(await streamed(url));
    } else {
      const answer = await fetch(url, { method: "POST", headers, body });
      await answer.arrayBuffer();
      console.log(answer.status);
    }
  }
}
