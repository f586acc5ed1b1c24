import { Page } from "../../parts/page";
import { texts } from "../../texts";

export default function Compare() {
  return <Page title={texts.pages.compare}>{null}</Page>;
}
