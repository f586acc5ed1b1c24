// Lines over time or steps. uPlot is loaded with the first chart; the legend beside it has the numbers as text.
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type uPlot from "uplot";
import { theme } from "./theme";

export interface Series {
  label: string;
  tone: "a" | "b" | "c" | "d" | "e";
}

interface ChartProps {
  label: string; // what it shows, for a screen reader and as its title
  x: number[]; // seconds since 1970, or steps
  time?: boolean; // x is a time
  series: Series[];
  values: (number | null)[][]; // one list a series, as long as x
  say: (n: number) => string; // a value with its unit
  sayX?: (n: number) => string;
  span?: number; // x always shows this much, ending at its newest
}

const HEIGHT = 150;
type Plot = { make: typeof uPlot };
let loading: Promise<Plot> | null = null;

function load(): Promise<Plot> {
  loading ??= import("./uplot").then(({ make }) => ({ make }));
  return loading;
}

export function Chart(props: ChartProps) {
  const { label, x, series, values, say, sayX } = props;
  const box = useRef<HTMLDivElement>(null);
  const legend = useRef<HTMLUListElement>(null);
  const plot = useRef<uPlot | null>(null);
  const at = useSignal<number | null>(null); // the place under the pointer
  const newest = useRef(props);
  newest.current = props;

  useEffect(() => {
    let gone = false;
    let watch: ResizeObserver | null = null;
    void load().then(({ make }) => {
      const place = box.current;
      if (gone || !place) return;
      const options = optionsOf(newest.current, place, legend.current!, (index) => (at.value = index));
      plot.current = new make(options, [newest.current.x, ...newest.current.values] as uPlot.AlignedData, place);
      watch = new ResizeObserver(() => plot.current?.setSize({ width: place.clientWidth, height: HEIGHT }));
      watch.observe(place);
    });
    return () => {
      gone = true;
      watch?.disconnect();
      plot.current?.destroy();
      plot.current = null;
    };
  }, [theme.value, series.length]);
  useEffect(() => plot.current?.setData([x, ...values] as uPlot.AlignedData), [x, values]);

  const shown = at.value === null ? x.length - 1 : at.value;
  return (
    <figure class="chart">
      <figcaption>
        <span>{label}</span>
        <ul class="legend" ref={legend}>
          {series.map((one, i) => (
            <li key={one.label}>
              <span class={`swatch tone-${one.tone}`} aria-hidden="true" />
              {one.label} <b>{typeof values[i]?.[shown] === "number" ? say(values[i]![shown]!) : "–"}</b>
            </li>
          ))}
          {at.value !== null && sayX && x[shown] !== undefined && <li>{sayX(x[shown]!)}</li>}
        </ul>
      </figcaption>
      <div ref={box} class="plot" aria-hidden="true" />
    </figure>
  );
}

function optionsOf(
  props: ChartProps,
  box: HTMLElement,
  legend: HTMLElement,
  pointed: (index: number | null) => void,
): uPlot.Options {
  const colour = (element: Element, of: "color" | "backgroundColor") => getComputedStyle(element)[of];
  const swatches = [...legend.querySelectorAll(".swatch")];
  const dim = colour(legend, "color");
  const axis: uPlot.Axis = {
    stroke: dim,
    grid: { stroke: dim, width: 0.12 },
    ticks: { show: false },
    font: "11px system-ui, sans-serif",
  };
  const { span } = props;
  return {
    width: box.clientWidth,
    height: HEIGHT,
    legend: { show: false },
    cursor: { y: false, points: { size: 6 } },
    hooks: { setCursor: [(u) => pointed(u.cursor.left! >= 0 ? (u.cursor.idx ?? null) : null)] },
    scales: {
      x: { time: Boolean(props.time), ...(span && { range: (_u, _low, high) => [high - span, high] }) },
      y: { range: (_u, low, high) => yRange(low, high) },
    },
    axes: [
      { ...axis, size: 24, space: 70, ...(props.time && { values: (_u, ticks, _axis, _space, s) => ticks.map(clock(s)) }) },
      { ...axis, size: 64, space: 34, values: (_u, ticks) => ticks.map((tick) => props.say(tick)) },
    ],
    series: [
      {},
      ...props.series.map((one, i) => ({
        label: one.label,
        stroke: colour(swatches[i]!, "backgroundColor"),
        width: 1.75,
        points: { show: !props.time && props.x.length < 3 },
        spanGaps: false,
      })),
    ],
  };
}

/** A tick's time; with its seconds where ticks are less than a minute apart. */
const clock = (apart: number) => (at: number) => new Date(at * 1000).toTimeString().slice(0, apart < 60 ? 8 : 5);

/** From zero, unless a curve lies below it; with a little air above. */
function yRange(low: number | null, high: number | null): [number, number] {
  if (low === null || high === null) return [0, 1];
  const top = high + (high - Math.min(0, low)) * 0.08;
  return [Math.min(0, low), top > 0 ? top : 1];
}
