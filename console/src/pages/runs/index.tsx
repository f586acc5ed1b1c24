import { Page } from "../../parts/page";
import { texts } from "../../texts";

export default function Runs() {
  return <Page title={texts.pages.runs}>{null}</Page>;
}
