import { Page } from "../../parts/page";
import { texts } from "../../texts";

export default function Usage() {
  return <Page title={texts.pages.usage}>{null}</Page>;
}
