// Everything known about one model, with sources: what `freehold why --json` prints, laid out.
import type { ComponentChildren } from "preact";
import type { Range } from "../../api/types";
import { Dialog } from "../../parts/dialog";
import { useLoaded } from "../../parts/loaded";
import { bytes, range, rate, short, whole } from "../../parts/numbers";
import { Loaded } from "../../parts/page";
import { texts } from "../../texts";
import { VERDICT_TONES } from "./rows";
import { Plain } from "../../text";

export interface Why {
  model: {
    name: string;
    state?: string;
    owner?: string;
    bytes?: number;
    held?: number;
    pack_bytes?: number;
    digest?: string;
    source?: string;
    licence?: string;
    detail?: string;
    catalogue?: { lab: string; country: string; checked: string; sources: string[]; context: number; licence_url: string };
  };
  licence: { answer: keyof typeof VERDICT_TONES; reasons: Reason[] } | null;
  quality: (Range & { benchmark: string; basis: string; evidence: string; tasks: string[] })[];
  own: { samples: string; passed: number; answered: number; cases: number; at: string }[];
  here: {
    fits: boolean | null;
    reason: string;
    longest: number | null;
    basis: string;
    decode: Range | null;
    prefill: Range | null;
    measured: unknown[];
  } | null;
  unknown: string[];
}

interface Reason {
  bearing: string;
  says: string;
  clause: string;
  source: string;
  licence: string;
}

const words = texts.models.why;

interface WhyProps {
  name: string;
  needs: string; // the row's sentence on memory
  onClose: () => void;
  actions: ComponentChildren;
}

export function WhyDialog({ name, needs, onClose, actions }: WhyProps) {
  const why = useLoaded<Why>(`/console/api/choose?verb=why&model=${encodeURIComponent(name)}`);
  return (
    <Dialog title={name} onClose={onClose} wide actions={actions}>
      <Loaded of={why}>{(value) => <Facts why={value} needs={needs} />}</Loaded>
    </Dialog>
  );
}

function Facts({ why, needs }: { why: Why; needs: string }) {
  return (
    <div class="why">
      <Here here={why.here} needs={needs} />
      <Licence licence={why.licence} />
      <Quality why={why} />
      <File model={why.model} />
      {why.unknown.length > 0 && (
        <details>
          <summary>{words.unknown}</summary>
          <ul class="unknowns">
            {why.unknown.map((what) => (
              <li key={what}><Plain text={what} /></li>
            ))}
          </ul>
        </details>
      )}
    </div>
  );
}

function Here({ here, needs }: { here: Why["here"]; needs: string }) {
  if (!here) return null;
  return (
    <section>
      <h3>{words.here}</h3>
      <dl class="facts">
        {here.reason && <Fact name={words.fits}><Plain text={here.reason} /></Fact>}
        {needs && <Fact name={words.memory}>{needs}</Fact>}
        {here.longest !== null && <Fact name={words.longest}>{words.tokens(whole(here.longest))}</Fact>}
        {here.decode && <Fact name={words.decode}>{rate(here.decode.mid)}</Fact>}
        {here.prefill && <Fact name={words.prefill}>{rate(here.prefill.mid)}</Fact>}
      </dl>
      {here.basis && (
        <details>
          <summary>{words.basis}</summary>
          <dl class="facts">
            {here.decode && <Fact name={words.decode}>{bounded(here.decode, rate)}</Fact>}
            {here.prefill && <Fact name={words.prefill}>{bounded(here.prefill, rate)}</Fact>}
            <Fact name={words.basis}><Plain text={here.basis} /></Fact>
          </dl>
        </details>
      )}
    </section>
  );
}

function Licence({ licence }: { licence: Why["licence"] }) {
  if (!licence) return null;
  return (
    <section>
      <h3>
        {words.licence} <span class={`badge ${VERDICT_TONES[licence.answer]}`}>{texts.models.verdicts[licence.answer]}</span>
      </h3>
      <details>
        <summary>{words.conditions(licence.reasons.length)}</summary>
        <ul class="reasons">
          {licence.reasons.map((reason, i) => (
            <li key={i}>
              <b>{reason.bearing}</b> {reason.says}
              <small>
                {reason.licence} {reason.clause} · {reason.source}
              </small>
            </li>
          ))}
        </ul>
        <p class="dim small">{words.noAdvice}</p>
      </details>
    </section>
  );
}

function Quality({ why }: { why: Why }) {
  if (!why.quality.length && !why.own.length) return null;
  return (
    <section>
      <h3>{words.quality}</h3>
      {why.quality.length > 0 && (
        <details>
          <summary>{words.results(why.quality.length)}</summary>
          <dl class="facts">
            {why.quality.map((q) => (
              <Fact key={q.benchmark + q.basis} name={q.benchmark}>
                {bounded(q, short)} <span class="dim">{[q.basis, q.evidence, q.tasks.join(", ")].filter(Boolean).join(" · ")}</span>
              </Fact>
            ))}
          </dl>
        </details>
      )}
      <dl class="facts">
        {why.own.map((own) => (
          <Fact key={own.samples + own.at} name={words.own}>
            {words.passed(own.samples, own.passed, own.answered)} <span class="dim">{own.at.slice(0, 10)}</span>
          </Fact>
        ))}
      </dl>
    </section>
  );
}

function File({ model }: { model: Why["model"] }) {
  const { catalogue } = model;
  return (
    <section>
      <h3>{words.origin}</h3>
      <dl class="facts">
        {catalogue && <Fact name={words.lab}>{`${catalogue.lab} (${catalogue.country})`}</Fact>}
        {model.licence && <Fact name={words.licence}><Plain text={model.licence} /></Fact>}
        {model.source && <Fact name={words.source}><Plain text={model.source} /></Fact>}
        {model.bytes ? <Fact name={words.size}>{bytes(model.bytes)}</Fact> : null}
      </dl>
      <details>
        <summary>{words.checks}</summary>
        <dl class="facts">
          {model.digest && (
            <Fact name="SHA-256">
              <code>{model.digest}</code>
            </Fact>
          )}
          {catalogue && <Fact name={words.checked}>{catalogue.checked}</Fact>}
          {catalogue && catalogue.sources.length > 0 && <Fact name={words.facts}>{catalogue.sources.join("; ")}</Fact>}
        </dl>
      </details>
    </section>
  );
}

function Fact({ name, children }: { name: string; children: ComponentChildren }) {
  return (
    <>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </>
  );
}

/** "195 tok/s (97.5 to 780)" */
function bounded(of: Range, say: (n: number) => string): string {
  return `${say(of.mid)} (${range(of.low, of.high, short)})`;
}
