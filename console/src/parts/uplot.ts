// uPlot and its style, in a file of their own so that they are loaded with the first chart.
import "uplot/dist/uPlot.min.css";

export { default as make } from "uplot";
