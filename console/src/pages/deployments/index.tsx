import { Page } from "../../parts/page";
import { texts } from "../../texts";

export default function Deployments() {
  return <Page title={texts.pages.deployments}>{null}</Page>;
}
