import { Page } from "../../parts/page";
import { texts } from "../../texts";

export default function Models() {
  return <Page title={texts.pages.models}>{null}</Page>;
}
