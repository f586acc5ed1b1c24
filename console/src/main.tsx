// Mounts the page. Knows the element it lives in, and nothing else.
import { render } from "preact";
import { App } from "./app";

render(<App />, document.getElementById("app")!);
