import { Page } from "../../parts/page";
import { texts } from "../../texts";

export default function Engine() {
  return <Page title={texts.pages.engine}>{null}</Page>;
}
