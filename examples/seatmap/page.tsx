import { createRoot } from "react-dom/client";
import { connect, type TopicOptions } from "@commitcast/client";
import { useAct, useTopic } from "@commitcast/client/react";

type Seat = { id: string; holder: string; version: number };

const me = (sessionStorage["me"] ??= `guest-${Math.random().toString(36).slice(2, 8)}`);
const feed = connect({ url: "/v1/ws" });
const put = (seats: Seat[], next: Seat) => seats.map((s) => (s.id === next.id ? next : s));
const hall: TopicOptions<Seat[], Seat> = { snapshot: "/api/hall", apply: (seats, event) => put(seats, event.data) };

function Hall() {
  const { status, state: seats, topic } = useTopic(feed, "hall:1", hall);
  const [act, { result, error }] = useAct<Seat, Seat[]>(topic);
  const click = (seat: Seat) => {
    const holder = seat.holder ? "" : me;
    return act({ url: `/api/seats/${seat.id}`, headers: { "X-Guest": me } },
      { saw: seat.version, optimistic: (now: Seat[]) => put(now, { ...seat, holder }) });
  };
  const note = error ? String(error) : result?.stale ? "Somebody was faster. This is how it is now." : "";
  return (
    <main>
      <h1>Hall 1 <small className={status}>{status}</small></h1>
      <div className="stage">Stage</div>
      <div className="seats">
        {seats?.map((s) => (
          <button key={s.id} className={s.holder === me ? "mine" : s.holder ? "taken" : "free"}
            disabled={s.holder !== "" && s.holder !== me} onClick={() => click(s)}
            aria-label={`Seat ${s.id}, ${s.holder === me ? "yours" : s.holder ? "taken" : "free"}`}>{s.id}</button>
        ))}
      </div>
      <p role="status">{note || (seats && `${seats.filter((s) => !s.holder).length} seats are free.`)}</p>
    </main>
  );
}

createRoot(document.getElementById("root")!).render(<Hall />);
