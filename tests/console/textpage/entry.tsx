// What tests and benches of text drive: the components alone, under the page's policy. It is bundled for them only.
import { render } from "preact";
import { Code, Plain, Text, Verbatim } from "./src/text";
import "./src/style.css";

const root = document.getElementById("app")!;

Object.assign(window, {
  /** Draw one text in every way that a page shows texts. */
  showAll(text: string) {
    render(
      <article key={Math.random()}>
        <h2><Plain text={text} /></h2>
        <Text source={text} />
        <Verbatim text={text} />
        <Code text={text} label={text.slice(0, 60)} />
      </article>,
      root,
    );
  },
  show(source: string, open = false) {
    render(<Text source={source} open={open} />, root);
  },
  name(text: string) {
    render(<Plain text={text} />, root);
  },
  verbatim(text: string) {
    render(<Verbatim text={text} />, root);
  },
  clear() {
    render(null, root);
  },
});
