import { texts } from "../../texts";

export default function Deployments() {
  return <h1>{texts.pages.deployments}</h1>;
}
